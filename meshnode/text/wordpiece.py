"""WordPiece as BERT has it: text is cleaned, cut at spaces and punctuation, and each word into its longest known pieces."""

from collections.abc import Callable

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.types.tokenizer import TokenizerData

__all__ = ["wordpiece"]


def wordpiece(data: TokenizerData, ids: dict[str, int]) -> Callable[[str], list[int]]:
    """Return what encodes a text. Raises InvalidModelFile without an unknown token, UnsupportedModel for another cleaning."""
    if data.unknown_token is None:
        raise InvalidModelFile("a WordPiece vocabulary needs a token for unknown words")
    if data.pre not in ("cased", "uncased"):
        raise UnsupportedModel(f"a WordPiece tokenizer of kind {data.pre[:40]!r} cannot be run; known: cased, uncased")
    core = tokenizers.Tokenizer(
        models.WordPiece(vocab=ids, unk_token=data.tokens[data.unknown_token], max_input_chars_per_word=100)
    )
    core.normalizer = normalizers.BertNormalizer(lowercase=data.pre == "uncased")
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return lambda text: core.encode(text, add_special_tokens=False).ids
