"""Messages in frames: which type of frame each kind of message travels in, and both directions of the translation.

The type of a frame gives its limit, which is checked before the frame is read; whether the message inside may travel in
a frame of that type is checked after it is decoded, so that no small message can claim the room of a large one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import attrs
import msgspec

from meshnode.errors import UnknownMessage, WireError
from meshnode.wire.frames import Frame, FrameDecoder, FrameLimits, encode_frame
from meshnode.wire.tagged import TaggedCodec

__all__ = ["Envelope", "EnvelopeCodec", "FrameType", "MessageSet"]

M = TypeVar("M", bound=msgspec.Struct)


@attrs.frozen
class Envelope(Generic[M]):
    """A message, the exchange it belongs to (0: none), and its raw bytes where it has any."""

    exchange: int
    message: M
    body: bytes = b""


@attrs.frozen
class FrameType:
    """A type of frame: its number on the wire, and how many bytes of header and body it may have."""

    number: int
    limit: int
    has_body: bool = False


class MessageSet(Generic[M]):
    """The messages that may travel in one direction, by the type of their frames.

    M is the union of those that a reader is handed; what the two ends of a link say to each other may come on top.
    """

    def __init__(self, by_type: Mapping[FrameType, Sequence[type[msgspec.Struct]]]) -> None:
        self.limits = FrameLimits({kind.number: kind.limit for kind in by_type})
        self._types = {message: kind for kind, messages in by_type.items() for message in messages}
        self._codec: TaggedCodec[M] = TaggedCodec(*self._types)  # type: ignore[arg-type]  # see above

    @property
    def kinds(self) -> tuple[type[msgspec.Struct], ...]:
        """All of them."""
        return tuple(self._types)

    def to_frame(self, message: msgspec.Struct, body: bytes = b"", exchange: int = 0) -> bytes:
        """Return the bytes of one message. Raises FrameTooLarge rather than send what the other side will refuse."""
        frame = Frame(self._types[type(message)].number, exchange, self._codec.encode(message), body)  # type: ignore[arg-type]
        return encode_frame(frame, self.limits)

    def from_frame(self, frame: Frame) -> Envelope[M]:
        """Return the message in a frame. Raises UnknownMessage for a kind of another version, WireError for anything wrong."""
        message = self._codec.decode(frame.header)
        kind = self._types[type(message)]
        if frame.type != kind.number or (frame.body and not kind.has_body):
            raise WireError(f"a message of kind {type(message).__name__} in a frame that is not for it")
        return Envelope(frame.exchange, message, frame.body)


class EnvelopeCodec(Generic[M]):
    """One end of a stream: messages to bytes, bytes to messages; keeps at most one unfinished frame."""

    def __init__(self, outgoing: MessageSet[M], incoming: MessageSet[M]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._decoder = FrameDecoder(incoming.limits)
        self.skipped = 0  # messages of kinds that this version does not know

    @property
    def missing(self) -> int:
        """Return how many bytes there are to come before anything can be done."""
        return self._decoder.missing

    def encode(self, message: msgspec.Struct, body: bytes = b"", exchange: int = 0) -> bytes:
        """Return the bytes of one message. Raises FrameTooLarge."""
        return self._outgoing.to_frame(message, body, exchange)

    def feed(self, data: bytes | bytearray) -> Iterator[Envelope[M]]:
        """Take received bytes and yield the messages that are whole; kinds of other versions are counted and left out.

        Raises WireError at the first one that breaks the protocol; the stream is of no use after that.
        """
        for frame in self._decoder.feed(data):
            try:
                yield self._incoming.from_frame(frame)
            except UnknownMessage:
                self.skipped += 1
