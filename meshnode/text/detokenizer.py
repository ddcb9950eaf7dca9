"""Tokens to text as they come: bytes are held back until they are whole characters."""

import codecs
from collections.abc import Mapping

import attrs

from meshnode.text.vocabulary import Tokenizer

__all__ = ["Detokenizer"]


@attrs.define(eq=False)
class Detokenizer:
    """One generation's decoder. Bytes that can never become UTF-8 turn into U+FFFD as soon as that is certain.

    Control tokens are no text, but for those `spelled`: somebody reads them further on.
    """

    tokenizer: Tokenizer
    spelled: Mapping[int, bytes] = attrs.field(factory=dict)
    _decoder: codecs.IncrementalDecoder = attrs.field(init=False)
    _at_start: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        data = self.tokenizer.data
        self._at_start = data.model != "gpt2" and data.add_space_prefix

    def push(self, token: int) -> str:
        """Return the text that is certain now."""
        raw = self.tokenizer.token_bytes(token) or self.spelled.get(token, b"")
        if self._at_start and raw:
            self._at_start = False
            raw = raw.removeprefix(b" ")  # encoding put it there: the text had none
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """Return what is left, replaced where it is not UTF-8."""
        return self._decoder.decode(b"", final=True)
