"""Frames: the unit that travels on a stream between two processes.

    u32 length | u8 type | u64 exchange | u32 header length | header | body        (little-endian)

`length` counts everything after itself. The header is small and structured (msgpack, see `tagged`), the body is raw
bytes of tensors. The limit of a frame's type is checked as soon as its prefix is there, before any more is kept, so a
wrong length costs nothing. Types nobody knows are delivered like others: the reader skips them.
"""

import struct
from collections.abc import Iterator, Mapping

import attrs

from meshnode.errors import FrameTooLarge, WireError

__all__ = ["Frame", "FrameDecoder", "FrameLimits", "encode_frame"]

_PREFIX = struct.Struct("<IBQI")
_LENGTH_BYTES = 4
_FIXED_BYTES = _PREFIX.size - _LENGTH_BYTES  # what `length` counts besides header and body


@attrs.frozen
class Frame:
    """One message on a stream; `exchange` ties an answer to its question and is 0 where there is none."""

    type: int
    exchange: int
    header: bytes
    body: bytes = b""


@attrs.frozen
class FrameLimits:
    """How many bytes of header and body together a frame may have, by type."""

    by_type: Mapping[int, int]
    other: int = 1 << 16  # of types we do not know

    def check(self, kind: int, nbytes: int) -> None:
        """Raise FrameTooLarge, naming both numbers, when a frame is over the limit of its type."""
        limit = self.by_type.get(kind, self.other)
        if nbytes > limit:
            raise FrameTooLarge(f"a frame of type {kind} has {nbytes} bytes; at most {limit} are allowed")


def encode_frame(frame: Frame, limits: FrameLimits) -> bytes:
    """Return the frame's bytes. Raises FrameTooLarge rather than send what the other side will refuse."""
    nbytes = len(frame.header) + len(frame.body)
    limits.check(frame.type, nbytes)
    prefix = _PREFIX.pack(_FIXED_BYTES + nbytes, frame.type, frame.exchange, len(frame.header))
    return b"".join((prefix, frame.header, frame.body))


@attrs.define(eq=False)
class FrameDecoder:
    """Turns received bytes into frames; keeps at most one unfinished frame.

    The pieces of a long frame are joined once, when the last is there: a buffer that grows costs a fifth of a link's speed.
    """

    limits: FrameLimits
    _pieces: list[bytes | bytearray] = attrs.field(factory=list, init=False)
    _held: int = attrs.field(default=0, init=False)  # bytes in them
    _wanted: int = attrs.field(default=_PREFIX.size, init=False)  # bytes without which nothing can be done

    @property
    def missing(self) -> int:
        """Return how many bytes there are to come before anything can be done: of a frame's prefix, or of the rest of it."""
        return max(1, self._wanted - self._held)

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        """Take received bytes and yield every frame that is now whole.

        Raises FrameTooLarge or WireError at the first bad frame; the stream is of no use after that.
        """
        self._pieces.append(data)
        self._held += len(data)
        if self._held < self._wanted:
            return
        whole = data if len(self._pieces) == 1 else b"".join(self._pieces)
        start = 0
        try:
            with memoryview(whole) as view:
                while (frame := self._next(view[start:])) is not None:
                    start += _PREFIX.size + len(frame.header) + len(frame.body)
                    yield frame
        finally:
            rest = whole[start:]
            self._pieces = [rest] if rest else []
            self._held = len(rest)

    def finish(self) -> None:
        """Say that the stream has ended. Raises WireError when it ended inside a frame."""
        if self._held:
            raise WireError(f"the stream ended inside a frame, after {self._held} of its bytes")

    def _next(self, view: memoryview) -> Frame | None:
        self._wanted = _PREFIX.size
        if len(view) < self._wanted:
            return None
        length, kind, exchange, header_bytes = _PREFIX.unpack_from(view)
        nbytes = length - _FIXED_BYTES
        if not 0 <= header_bytes <= nbytes:
            raise WireError(f"a frame of type {kind} claims a header of {header_bytes} in {nbytes} bytes")
        self.limits.check(kind, nbytes)
        self._wanted = _PREFIX.size + nbytes
        if len(view) < self._wanted:
            return None
        body_start = _PREFIX.size + header_bytes
        return Frame(kind, exchange, bytes(view[_PREFIX.size : body_start]), bytes(view[body_start : self._wanted]))
