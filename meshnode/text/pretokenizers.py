"""The table of `tokenizer.ggml.pre` names: how text is cut before byte-level BPE merges.

The patterns are those of the model families, as llama.cpp names them. A name that is not here is refused: a wrong cut gives
plausible, subtly worse answers that nobody notices.
"""

import attrs

from meshnode.errors import UnsupportedModel

__all__ = ["PreTokenizer", "pre_tokenizer"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(CONTRACTIONS)?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(CONTRACTIONS)?|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_GPT4O = _CASED.replace("(CONTRACTIONS)", _CONTRACTIONS).replace("DIGITS", r"\p{N}{1,3}")
_TEKKEN = _CASED.replace("(CONTRACTIONS)?", "").replace("DIGITS", r"\p{N}")
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES
)


@attrs.frozen
class PreTokenizer:
    """Patterns applied one after the other, each cutting the pieces of the one before."""

    patterns: tuple[str, ...]
    whole_words: bool = False  # a piece that is in the vocabulary as it stands is not merged (tiktoken's rule)


_TABLE = {
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "exaone", "minerva-7b"): PreTokenizer((_GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell"): PreTokenizer((r"\p{N}", _GPT2)),
    ("llama-bpe", "llama-v3", "llama3", "falcon3", "pixtral", "dbrx", "smaug-bpe"): PreTokenizer(
        (_LLAMA3,), whole_words=True
    ),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"): PreTokenizer((_QWEN2,)),
    ("gpt-4o", "llama4"): PreTokenizer((_GPT4O,)),
    ("tekken",): PreTokenizer((_TEKKEN,), whole_words=True),
    ("deepseek-v3",): PreTokenizer((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)),
    ("falcon",): PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
}


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return the patterns for a `pre` name. Raises UnsupportedModel listing what is known."""
    for names, found in _TABLE.items():
        if name in names:
            return found
    known = ", ".join(sorted(name for names in _TABLE for name in names))
    raise UnsupportedModel(
        f"the pre-tokenizer {name!r} is unknown, and guessing would cut words wrongly; known: {known}"
    )
