"""WordPiece vocabularies of `tokenizer.json` and of GGUF metadata, in the same terms: what goes on with a word begins with ##."""

from collections.abc import Sequence

from meshnode.errors import UnsupportedModel
from meshnode.files.typed_fields import TypedFields

__all__ = ["CASED", "UNCASED", "from_gguf_spelling", "normalizer_name", "refuse_other_wordpiece"]

CASED, UNCASED = "cased", "uncased"
_SPACE = "\u2581"


def refuse_other_wordpiece(model: TypedFields) -> None:
    """Raise UnsupportedModel for settings that BERT's vocabularies do not have."""
    prefix = model.get("continuing_subword_prefix", str, "##")
    longest = model.get("max_input_chars_per_word", int, 100)
    if prefix != "##" or longest != 100:
        raise UnsupportedModel(
            f"a WordPiece tokenizer with prefix {prefix[:20]!r} and words up to {longest} cannot be read"
        )


def normalizer_name(fields: TypedFields) -> str:
    """Return CASED or UNCASED for the text cleaning and cutting that a BERT tokenizer does. Raises UnsupportedModel."""
    match fields.values.get("normalizer"), fields.values.get("pre_tokenizer"):
        case (
            {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "lowercase": bool(lowers),
                **rest,
            },
            {"type": "BertPreTokenizer"},
        ) if rest.get("strip_accents") in (None, lowers):
            return UNCASED if lowers else CASED
        case normalizer, cutter:
            raise UnsupportedModel(
                f"a WordPiece tokenizer with normalizer {str(normalizer)[:160]} and pre-tokenizer {str(cutter)[:80]} "
                "cannot be read"
            )


def from_gguf_spelling(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return tokens as BERT writes them; GGUF marks those that begin a word, instead of those that go on with one."""
    return tuple(map(_spelled, tokens))


def _spelled(token: str) -> str:
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[1:] if token.startswith(_SPACE) else f"##{token}"
