"""SentencePiece's unigram tokenizer: of all ways to cut a text, the one whose pieces are likeliest together."""

import re
from collections.abc import Callable

import attrs
import tokenizers
from tokenizers import models

from meshnode.text.charsmap import read_charsmap
from meshnode.types.tokenizer import TokenizerData

__all__ = ["UnigramEncoder"]

_SPACES = re.compile(" +")
_UNREACHABLE = " "  # the unknown token's text in the library's table: no text has a space left when it gets there


@attrs.frozen(eq=False)
class UnigramEncoder:
    """Encodes texts whose spaces are still spaces."""

    core: tokenizers.Tokenizer
    normalize: Callable[[str], str]
    tokens: tuple[int, ...]  # the library's number of a piece -> token id
    bytes_: dict[int, int]  # byte value -> token id
    unknown: int

    @classmethod
    def build(cls, data: TokenizerData, plain: dict[str, int], bytes_: dict[int, int]) -> "UnigramEncoder":
        """Make one that knows the pieces of `plain`. Raises InvalidModelFile for a table of characters that is broken."""
        unknown = data.unknown_token or 0
        pieces = [(text, token) for text, token in plain.items() if token != unknown]
        scored = [(_UNREACHABLE, data.scores[unknown]), *((text, data.scores[token]) for text, token in pieces)]
        core = tokenizers.Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
        return cls(core, _normalizer(data), (unknown, *(token for _, token in pieces)), bytes_, unknown)

    def encode(self, text: str) -> list[int]:
        """Return token ids. What no piece covers falls back to bytes, or becomes one unknown token."""
        found = self.core.encode(text, add_special_tokens=False)
        result: list[int] = []
        for piece, (begin, end) in zip(found.ids, found.offsets, strict=True):
            if piece or not self.bytes_:
                result.append(self.tokens[piece])
            else:
                result += [self.bytes_.get(byte, self.unknown) for byte in text[begin:end].encode()]
        return result


def _normalizer(data: TokenizerData) -> Callable[[str], str]:
    """Return what is done to a text first: the file's table of characters, then its rule for spaces."""
    replace = read_charsmap(data.charsmap) if data.charsmap else str
    if not data.remove_extra_whitespaces:
        return replace
    return lambda text: _SPACES.sub(" ", replace(text)).strip(" ")
