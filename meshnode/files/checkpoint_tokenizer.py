"""Puts together a checkpoint's vocabulary, its special tokens and its chat template."""

import attrs

from meshnode.errors import InvalidModelFile
from meshnode.files.checkpoint_vocabulary import Vocabulary, read_vocabulary
from meshnode.files.sampling_advice import sampling_advice
from meshnode.files.typed_fields import TypedFields
from meshnode.types.generation import SamplingAdvice
from meshnode.types.tokenizer import TokenizerData

__all__ = ["CheckpointTexts", "checkpoint_tokenizer"]


@attrs.frozen
class CheckpointTexts:
    """The files of a checkpoint that describe its text side; those that are not there are empty."""

    config: TypedFields  # config.json
    tokenizer: TypedFields  # tokenizer.json
    tokenizer_config: TypedFields  # tokenizer_config.json
    generation_config: TypedFields  # generation_config.json
    chat_template: str | None = None  # chat_template.jinja


def checkpoint_tokenizer(texts: CheckpointTexts, size: int) -> TokenizerData:
    """Read the tokenizer of a model with `size` embedding rows. Raises UnsupportedModel and InvalidModelFile."""
    vocabulary = read_vocabulary(texts.tokenizer, size)
    first, last = ("cls", "sep") if vocabulary.model == "bert" else ("bos", "eos")
    bos, eos = _special(texts, vocabulary, first), _special(texts, vocabulary, last)
    ends = [*_token_ids(texts.generation_config), *_token_ids(texts.config)]
    return TokenizerData(
        model=vocabulary.model,
        pre=vocabulary.pre,
        tokens=vocabulary.tokens,
        token_types=vocabulary.token_types,
        merges=vocabulary.merges,
        scores=vocabulary.scores,
        bos_token=bos,
        eos_token=eos,
        eot_token=next((token for token in ends if token != eos), None),
        unknown_token=vocabulary.unknown_token,
        padding_token=_special(texts, vocabulary, "pad"),
        add_bos=_adds(texts, "bos", bos, vocabulary),
        add_eos=_adds(texts, "eos", eos, vocabulary),
        add_space_prefix=vocabulary.add_space_prefix,
        chat_template=texts.chat_template or _chat_template(texts.tokenizer_config),
        sampling=_sampling(texts.generation_config),
    )


def _sampling(generation: TypedFields) -> SamplingAdvice | None:
    return sampling_advice(generation) if generation.get("do_sample", bool, default=False) else None


def _special(texts: CheckpointTexts, vocabulary: Vocabulary, name: str) -> int | None:
    """Return the token `tokenizer_config.json` names, else the number in `config.json`."""
    given = texts.tokenizer_config.values.get(f"{name}_token")
    text = given.get("content") if isinstance(given, dict) else given
    if text is None:
        return next(iter(_token_ids(texts.config, name)), None)
    if text not in vocabulary.tokens:
        raise InvalidModelFile(f"the {name} token {str(text)[:80]!r} is not in the vocabulary")
    return vocabulary.tokens.index(text)


def _token_ids(fields: TypedFields, name: str = "eos") -> list[int]:
    value = fields.values.get(f"{name}_token_id")
    return [token for token in (value if isinstance(value, list) else [value]) if type(token) is int]


def _adds(texts: CheckpointTexts, name: str, token: int | None, vocabulary: Vocabulary) -> bool:
    """Say whether the tokenizer puts `token` around every text: by its flag, else by its template."""
    flag = texts.tokenizer_config.optional(f"add_{name}_token", bool)
    if flag is not None or token is None:
        return bool(flag)
    processor = texts.tokenizer.get("post_processor", dict, {})
    steps = processor.get("processors") if processor.get("type") == "Sequence" else [processor]
    text = vocabulary.tokens[token]
    for step in steps if isinstance(steps, list) else []:
        match step:
            case {"type": "TemplateProcessing", "single": [*pieces]}:
                return any(_is_special(piece, text) for piece in pieces)
    return False


def _is_special(piece: object, text: str) -> bool:
    match piece:
        case {"SpecialToken": {"id": str(name)}}:
            return name == text
    return False


def _chat_template(fields: TypedFields) -> str | None:
    """Return the template; of several named ones the one called default."""
    match fields.values.get("chat_template"):
        case str(template):
            return template
        case [*named]:
            for item in named:
                match item:
                    case {"name": "default", "template": str(template)}:
                        return template
    return None
