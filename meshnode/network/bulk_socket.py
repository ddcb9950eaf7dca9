"""A bulk connection as a thread sees it: blocking TLS over a socket of its own.

Encryption, hashing and file access release the interpreter's lock, so a transfer costs the event loop next to nothing, and the
activations that pass through it go first. Through the loop's own streams every mebibyte would hold it up for some milliseconds.
"""

import contextlib
import fcntl
import math
import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import attrs
import trio

from meshnode.errors import MeshnodeError, PeerUnreachable
from meshnode.network.right_of_way import Courtesy
from meshnode.wire.bulk_messages import BulkMessage
from meshnode.wire.envelopes import Envelope, EnvelopeCodec
from meshnode.wire.protocols import BULK_MESSAGES

__all__ = ["BulkSocket", "Pace", "in_thread", "own_socket"]

T = TypeVar("T")

Pace = Callable[[int], float]
"""Told how many bytes are to be sent; says in how many seconds they may."""

_PIECE = 16 << 10  # bytes, a record of TLS: the other side sees that something comes
_UNSENT = 256 << 10  # bytes that the kernel holds unsent: what it has, nobody can hold back for activations
_LOWER_EFFORT = 0x04  # IP's traffic class for what gives way to everything else (RFC 8622)
_LAST_BAND = 2  # of a device's own queue, on Linux
_GIVES_WAY = [
    (getattr(socket, level), getattr(socket, option), value)
    for level, option, value in (
        ("IPPROTO_IP", "IP_TOS", _LOWER_EFFORT),
        ("IPPROTO_IPV6", "IPV6_TCLASS", _LOWER_EFFORT),
        ("SOL_SOCKET", "SO_PRIORITY", _LAST_BAND),  # after IP_TOS, which sets one too
        ("IPPROTO_TCP", "TCP_NOTSENT_LOWAT", _UNSENT),
    )
    if hasattr(socket, option)
]
_SIOCOUTQ = 0x5411  # Linux: asks for the bytes that the other side has not acknowledged
_LOOK = 0.001  # seconds between two looks at them
_ELSEWHERE = 0.005  # seconds a piece is taken to need where they cannot be asked for
_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # where there is none, only what we shut ourselves is seen at once


def own_socket(stream: trio.SocketStream, timeout: float) -> socket.socket:
    """Return a blocking socket for a stream's connection, and end the stream; `timeout` is for each of its calls, in seconds.

    What goes over it gives way to all else, on this machine and wherever a router looks at that.
    """
    taken = socket.socket(fileno=os.dup(stream.socket.fileno()))
    stream.socket.close()
    taken.settimeout(timeout)
    for level, option, value in _GIVES_WAY:
        with contextlib.suppress(OSError):  # not of this family, or not of this system: then it is like any other
            taken.setsockopt(level, option, value)
    return taken


@attrs.define(eq=False)
class BulkSocket:
    """One end. Its methods block, and raise PeerUnreachable when the other end is gone, silent, or has been shut."""

    socket: ssl.SSLSocket
    _codec: EnvelopeCodec[BulkMessage] = attrs.field(init=False)
    _ready: list[Envelope[BulkMessage]] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._codec = EnvelopeCodec(BULK_MESSAGES, BULK_MESSAGES)

    def send(
        self, message: BulkMessage, body: bytes = b"", pace: Pace | None = None, courtesy: Courtesy | None = None
    ) -> None:
        """Send a message: in small pieces if there is a pace, with courtesy behind activations. Raises FrameTooLarge too."""
        data = memoryview(self._codec.encode(message, body))
        while data:
            if courtesy is not None and courtesy.way.is_taken:
                size = courtesy.piece
                self._send_in_turn(data[:size], pace, courtesy)
            else:
                size = len(data) if pace is None else _PIECE
                self._send(data[:size], pace)
            data = data[size:]

    def _send(self, data: memoryview, pace: Pace | None) -> None:
        for start in range(0, len(data), len(data) if pace is None else _PIECE):
            piece = data[start:] if pace is None else data[start : start + _PIECE]
            if pace is not None and (pause := pace(len(piece))):
                self._rest(pause)
            with _unreachable():
                self.socket.sendall(piece)

    def _send_in_turn(self, data: memoryview, pace: Pace | None, courtesy: Courtesy) -> None:
        self._await_arrival()
        while pause := courtesy.claim():
            self._rest(pause)
        began = time.monotonic()
        self._send(data, pace)
        self._await_arrival()
        courtesy.arrived(time.monotonic() - began)

    def _await_arrival(self) -> None:
        """Wait until the other side has acknowledged all that was sent, as long as it might have taken to send it."""
        if sys.platform != "linux":
            self._rest(_ELSEWHERE)
            return
        patience = time.monotonic() + (self.socket.gettimeout() or math.inf)
        while self._on_its_way():
            if time.monotonic() > patience:
                raise PeerUnreachable("the other side takes nothing")
            self._rest(_LOOK)

    def _on_its_way(self) -> int:
        count = bytearray(4)
        fcntl.ioctl(self.socket, _SIOCOUTQ, count)
        return int.from_bytes(count, sys.byteorder)

    def _rest(self, seconds: float) -> None:
        """Wait, unless the connection is shut meanwhile, by either side."""
        shut = select.poll()
        shut.register(self.socket, _HUNG_UP)
        if shut.poll(seconds * 1e3):
            raise PeerUnreachable("the other side hung up")

    def send_raw(self, data: bytes) -> None:
        """Send bytes that are no message: a ticket's token."""
        with _unreachable():
            self.socket.sendall(data)

    def receive_raw(self, count: int) -> bytes:
        """Return exactly so many bytes."""
        data = b""
        with _unreachable():
            while len(data) < count:
                piece = self.socket.recv(count - len(data))
                if not piece:
                    raise PeerUnreachable("the other side hung up")
                data += piece
        return data

    def receive(self, within: float = math.inf) -> Envelope[BulkMessage] | None:
        """Return the next message, None when the other side has closed. Raises WireError for what breaks the protocol.

        One that takes longer than `within` seconds is as good as none, however steadily it trickles in.
        """
        until = time.monotonic() + within
        while not self._ready:
            data = self._receive(self._codec.missing, until)
            if not data:
                return None
            self._ready.extend(self._codec.feed(data))
        return self._ready.pop(0)

    def _receive(self, count: int, until: float) -> bytearray:
        """Return so many bytes, fewer at the end. TLS gives 16 KiB at a time, and nothing looks at them before all are there."""
        data, filled = bytearray(count), 0
        with _unreachable(), memoryview(data) as view:
            while filled < count and (more := self.socket.recv_into(view[filled:])):
                filled += more
                if filled < count and time.monotonic() > until:
                    raise PeerUnreachable("the other side is too slow")
        return data if filled == count else data[:filled]


@contextlib.contextmanager
def _unreachable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PeerUnreachable(f"the connection broke: {error.strerror or error}") from error


async def in_thread(end: socket.socket, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """Run `work`, which uses a connection, in a thread and return its result; `end` is a duplicate of the connection's socket.

    Cancellation shuts the connection by it, so that the work ends at once, and waits for it. Raises the MeshnodeError leafs that
    the work raises.
    """
    outcome: list[T] = []
    failed: MeshnodeError | None = None
    is_over = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_shut_when_cancelled, end, is_over)
        try:
            outcome.append(await trio.to_thread.run_sync(work, limiter=limiter))
        except MeshnodeError as error:
            failed = error
        is_over.set()
    await trio.lowlevel.checkpoint_if_cancelled()
    if failed is not None:
        raise failed
    return outcome[0]


async def _shut_when_cancelled(end: socket.socket, is_over: trio.Event) -> None:
    try:
        await is_over.wait()
    except trio.Cancelled:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        raise
