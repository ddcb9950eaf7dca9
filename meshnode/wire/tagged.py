"""Headers as tagged msgspec Structs: one union per protocol, unknown kinds recognised as such.

Two versions of meshnode may talk to each other during an update, so a message of a kind that this version does not know
is not an error of the other side; it has its own exception, and readers skip it.
"""

from typing import Generic, TypeVar

import msgspec

from meshnode.errors import UnknownMessage, WireError

__all__ = ["UNDECODABLE", "TaggedCodec"]

M = TypeVar("M", bound=msgspec.Struct)

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that decoding bytes of somebody else raises: text that is not UTF-8 and deep nesting have errors of their own."""


class _Tag(msgspec.Struct):
    type: str


class TaggedCodec(Generic[M]):
    """Encodes and decodes the Structs of one protocol; each has its own `tag`."""

    def __init__(self, *kinds: type[M]) -> None:
        union = kinds[0]
        for kind in kinds[1:]:
            union = union | kind  # type: ignore[assignment]
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)
        self._tag_decoder = msgspec.msgpack.Decoder(_Tag)
        self._encoder = msgspec.msgpack.Encoder()
        self._tags = frozenset(kind.__struct_config__.tag for kind in kinds)

    def encode(self, message: M) -> bytes:
        """Return the header's bytes."""
        return self._encoder.encode(message)

    def decode(self, header: bytes) -> M:
        """Return the message. Raises UnknownMessage for a kind of another version, WireError for anything malformed."""
        try:
            return self._decoder.decode(header)
        except UNDECODABLE as error:
            tag = self._tag_of(header)
            if tag is not None and tag not in self._tags:
                raise UnknownMessage(f"a message of the unknown kind {tag[:40]!r}") from error
            raise WireError(f"a message of kind {tag!r} is malformed: {error}") from error

    def _tag_of(self, header: bytes) -> str | None:
        try:
            return self._tag_decoder.decode(header).type
        except UNDECODABLE:
            return None
