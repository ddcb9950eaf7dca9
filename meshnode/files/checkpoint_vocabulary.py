"""Reads a `tokenizer.json` (the `tokenizers` library's format) in the terms of GGUF's vocabularies.

Three kinds are read: byte-level BPE with a pre-tokenizer that GGUF has a name for, SentencePiece's BPE as Llama 2 and the
first Mistral have it, and BERT's WordPiece. Anything the library would do that a vocabulary in GGUF's terms cannot express
is refused by name.
"""

from collections.abc import Mapping, Sequence

import attrs

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.typed_fields import TypedFields
from meshnode.files.wordpiece_vocabulary import normalizer_name, refuse_other_wordpiece

__all__ = ["Vocabulary", "read_vocabulary"]

_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
)
_SPLITS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES: "llama-bpe",
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES: "qwen2",
    _TEKKEN + _SPACES: "tekken",
}
_WHOLE_WORDS = {"llama-bpe", "tekken"}  # a word that is a token is not merged: `ignore_merges`


@attrs.frozen
class Vocabulary:
    """The tokens of a `tokenizer.json`."""

    model: str
    pre: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    unknown_token: int | None
    add_space_prefix: bool


def read_vocabulary(fields: TypedFields, size: int) -> Vocabulary:
    """Read a vocabulary for a model with `size` embedding rows; rows without a token get an unused one.

    Raises UnsupportedModel for what cannot be expressed, InvalidModelFile for what contradicts itself.
    """
    model = TypedFields(fields.need("model", dict), f"model of {fields.where}")
    kind = model.get("type", str, "BPE")
    if kind == "WordPiece":
        return _wordpiece(fields, model, size)
    if kind != "BPE":
        raise UnsupportedModel(f"a tokenizer of type {kind[:40]!r} cannot be read; known: BPE, WordPiece")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.values.get(key):
            raise UnsupportedModel(f"a tokenizer with {key} cannot be read")
    merges = _merges(model.need("merges", list))
    tokens, types = _tokens(fields, model, size)
    unknown = model.optional("unk_token", str)
    unknown_token = tokens.index(unknown) if unknown in tokens else None
    if model.get("byte_fallback", bool, default=False):
        return Vocabulary(
            model="llama",
            pre="default",
            tokens=tokens,
            token_types=_sentencepiece_types(tokens, types, unknown_token),
            merges=(),
            scores=_scores(tokens, merges),
            unknown_token=unknown_token,
            add_space_prefix=_sentencepiece_prefix(fields),
        )
    pre = _pre_name(fields, whole_words=model.get("ignore_merges", bool, default=False))
    return Vocabulary(
        "gpt2", pre, tokens, types, tuple(map(" ".join, merges)), (), unknown_token, add_space_prefix=False
    )


def _wordpiece(fields: TypedFields, model: TypedFields, size: int) -> Vocabulary:
    refuse_other_wordpiece(model)
    tokens, types = _tokens(fields, model, size)
    unknown = model.get("unk_token", str, "[UNK]")
    if unknown not in tokens:
        raise InvalidModelFile(f"the unknown token {unknown[:80]!r} is not in the vocabulary")
    return Vocabulary(
        "bert", normalizer_name(fields), tokens, types, (), (), tokens.index(unknown), add_space_prefix=False
    )


def _merges(values: Sequence[object]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for value in values:
        match value.split(" ") if isinstance(value, str) else value:
            case [str(left), str(right)] if left and right and " " not in left + right:
                merges.append((left, right))
            case _:
                raise InvalidModelFile(f"a merge of the tokenizer is {str(value)[:80]!r}, not two pieces")
    return merges


def _tokens(fields: TypedFields, model: TypedFields, size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens = [f"[PAD{token}]" for token in range(size)]
    types = [_UNUSED] * size

    def put(text: object, token: object, kind: int) -> None:
        if not isinstance(text, str) or type(token) is not int:
            raise InvalidModelFile(f"the token {str(text)[:80]!r} of {fields.where} has no proper number")
        if not 0 <= token < size:
            raise InvalidModelFile(
                f"the token {text[:80]!r} has number {token}, but the model has {size} embedding rows"
            )
        tokens[token], types[token] = text, kind

    for text, token in model.need("vocab", dict).items():
        put(text, token, _NORMAL)
    for added in fields.get("added_tokens", list, []):
        if not isinstance(added, dict):
            raise InvalidModelFile(f"an added token of {fields.where} is not an object")
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            raise UnsupportedModel(f"the added token {str(added.get('content'))[:80]!r} takes neighbours with it")
        put(added.get("content"), added.get("id"), _CONTROL if added.get("special") else _USER_DEFINED)
    return tuple(tokens), tuple(types)


def _pre_name(fields: TypedFields, *, whole_words: bool) -> str:
    """Return GGUF's name of a byte-level pre-tokenizer."""
    if fields.values.get("normalizer"):
        raise UnsupportedModel(f"the normalizer {str(fields.values['normalizer'])[:120]} cannot be read")
    match _steps(fields.optional("pre_tokenizer", dict)):
        case [("ByteLevel", True)]:
            name = "gpt-2"
        case [("Digits", True), ("ByteLevel", True)]:
            name = "smollm"
        case [("Split", str(pattern)), ("ByteLevel", False)] if pattern in _SPLITS:
            name = _SPLITS[pattern]
        case steps:
            raise UnsupportedModel(
                f"the pre-tokenizer {str(steps)[:400]} has no name here; guessing would cut words wrongly"
            )
    if whole_words != (name in _WHOLE_WORDS):
        raise UnsupportedModel(f"a {name} tokenizer with ignore_merges = {whole_words} cannot be expressed")
    return name


def _steps(pre_tokenizer: Mapping[str, object] | None) -> list[tuple[object, object]]:
    """Return (type, the one thing about it that matters) of every step."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*inner]}:
            return [step for item in inner if isinstance(item, dict) for step in _steps(item)]
        case {"type": "Digits", "individual_digits": bool(individual)}:
            return [("Digits", individual)]
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            return [("ByteLevel", rest.get("use_regex", True))]
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return [("Split", pattern)]
    return [("unknown", pre_tokenizer)]


def _sentencepiece_prefix(fields: TypedFields) -> bool:
    """Say whether a space is put before the text, and refuse what SentencePiece's BPE does not do."""
    normalizer, cutter = fields.optional("normalizer", dict), fields.optional("pre_tokenizer", dict)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if cutter is None and normalizer == replace:
        return False
    if cutter is None and normalizer == {"type": "Sequence", "normalizers": [replace]}:
        return False
    if cutter is None and normalizer == {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": _SPACE}, replace],
    }:
        return True
    match cutter:
        case {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": str(scheme), "split": False}:
            if not normalizer:
                return scheme != "never"
    raise UnsupportedModel(
        f"a SentencePiece tokenizer with normalizer {str(normalizer)[:120]} and pre-tokenizer {str(cutter)[:120]} cannot be read"
    )


def _sentencepiece_types(tokens: Sequence[str], types: Sequence[int], unknown: int | None) -> tuple[int, ...]:
    byte_names = {f"<0x{byte:02X}>" for byte in range(256)}
    kinds = [_BYTE if text in byte_names else kind for text, kind in zip(tokens, types, strict=True)]
    if unknown is not None:
        kinds[unknown] = _UNKNOWN
    return tuple(kinds)


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> tuple[float, ...]:
    """Return scores that order merges as their ranks do; SentencePiece's own were lost in the conversion to ranks."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return tuple(-float(ranks.get(token, len(merges))) for token in tokens)
