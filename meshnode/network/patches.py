"""What has to be different inside libp2p 0.8.1 so that a node can rely on it. Nothing here is used with another version.

What goes wrong without, each found with two hosts on loopback and held by a test in tests/network/test_patches.py:

- A cancelled write can leave half a frame, or a Noise nonce that was never sent: the connection is lost. What carries it writes
  shielded, under a deadline (`libp2p_streams.Carrier`).
- A cancelled read has taken data from the buffer and then waits for the window update to be written: the data is lost.
- A reader waits for ever when its own side resets the stream.
- A writer gives up after 5 s without window, so that a slow reader ends the stream instead of slowing it down.
- A stream that is finished and then reset is read as reset, or as finished, by chance. What was finished stays so.
- Closing waits for a farewell to be written, for 30 s to a peer that hangs, and then sleeps.
- Every read, however small, is told to the sender in a frame of its own: a heartbeat costs two. The window is opened again
  once half of it has been used.
- Each end pings every half minute, for ever, to know how fast a window may grow: a quarter of the frames between idle peers.
  Once is enough.
- A lock that nobody holds costs a round of the loop, and data that has come already is read under a deadline: most of what a
  heartbeat costs. Neither has to be.
- A peer that ignores its window is only warned about, and fills our memory. Its stream is reset.
"""

import importlib.metadata
import logging
import math
import os
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from libp2p.abc import ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.utils import read_exactly
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux

__all__ = ["LIBP2P_VERSION", "PeerHangs", "SteadyStream", "SteadyYamux", "apply"]

LIBP2P_VERSION = "0.8.1"

_MAX_WINDOW = 1 << 20  # bytes that a peer may send ahead of the reader, per stream; libp2p's own is 16 MiB
_RECHECK = 0.5  # seconds between looks whether a stream without window has been closed meanwhile


def apply() -> None:
    """Make libp2p use what is below; may be repeated. Raises RuntimeError for a version that nobody has looked at."""
    version = importlib.metadata.version("libp2p")
    if version != LIBP2P_VERSION:
        raise RuntimeError(
            f"libp2p {version} is installed, but this node patches the inside of {LIBP2P_VERSION}; "
            f"run: pip install libp2p=={LIBP2P_VERSION}"
        )
    if "LIBP2P_DEBUG" not in os.environ:
        # Any stranger can make it complain, as often as they like, on standard error past our own log.
        log = logging.getLogger("libp2p")
        log.propagate = False
        if not log.handlers:
            log.addHandler(logging.NullHandler())
    yamux.YamuxStream = SteadyStream  # type: ignore[misc]
    yamux.MAX_WINDOW_SIZE = _MAX_WINDOW
    yamux.RTT_MEASURE_INTERVAL = math.inf  # type: ignore[assignment]
    muxer_multistream.Yamux = SteadyYamux  # type: ignore[attr-defined]  # whatever class it is configured with, it makes this one


class PeerHangs(ConnectionClosedError):
    """Nothing that is written to a connection goes out."""


class _Turn:
    """A lock that is taken at once when nobody has it: Trio's lets the loop go round first."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class SteadyYamux(yamux.Yamux):
    """A multiplexed connection that gives way to a peer that hangs, and is quick about small frames."""

    def __init__(
        self,
        secured_conn: ISecureConn,
        peer_id: ID,
        is_initiator: bool | None = None,
        on_close: Callable[[], Awaitable[object]] | None = None,
    ) -> None:  # libp2p's
        super().__init__(secured_conn, peer_id, is_initiator, on_close)
        self.streams_lock, self._write_lock = _Turn(), _Turn()  # type: ignore[assignment]

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            if self.event_closed.is_set():
                raise ConnectionClosedError("the connection is closed")
            try:
                await self.secured_conn.write(data)
            except PeerHangs:
                await self.close()
                raise

    async def _read_data_body(self, length: int) -> bytes:
        session = self.secured_conn
        if isinstance(session, SecureSession) and session.high_watermark - session.low_watermark >= length:
            return await read_exactly(session, length)
        return await super()._read_data_body(length)

    async def close(self, error_code: int = yamux.GO_AWAY_NORMAL) -> None:  # noqa: ARG002  # nobody is told one
        """End the connection at once, without farewell: a peer that hangs would not read it. Cannot be cancelled."""
        with trio.CancelScope(shield=True):
            await self._cleanup_on_error()


class SteadyStream(yamux.YamuxStream):
    """A stream that survives cancellation, waits for slow readers and holds its peer to its window."""

    conn: SteadyYamux

    def __init__(self, stream_id: int, conn: yamux.Yamux, is_initiator: bool) -> None:  # libp2p's
        self._window_opened = trio.Event()
        self._send_window = self._recv_window = 0
        self._recv_closed = self._finished = False
        super().__init__(stream_id, conn, is_initiator)

    @property
    def send_window(self) -> int:
        """Bytes that may be sent now."""
        return self._send_window

    @send_window.setter
    def send_window(self, value: int) -> None:
        self._send_window = value
        if value > 0:
            self._window_opened.set()
            self._window_opened = trio.Event()

    @property
    def recv_window(self) -> int:
        """Bytes that the peer may send now."""
        return self._recv_window

    @recv_window.setter
    def recv_window(self, value: int) -> None:
        self._recv_window = value
        if value < 0 and not self.closed:
            self.closed = self.send_closed = self.recv_closed = self.reset_received = True
            self.conn.stream_buffers[self.stream_id].clear()
            if self.conn._nursery is not None:
                self.conn._nursery.start_soon(self._tell_reset)

    @property
    def recv_closed(self) -> bool:
        """Whether no more will come."""
        return self._recv_closed

    @recv_closed.setter
    def recv_closed(self, value: bool) -> None:
        self._recv_closed = value
        self._finished |= value and not self.closed  # the peer said so; it was not cut off, here or there

    async def write(self, data: bytes) -> None:
        """Send all of `data`, waiting for window as long as it takes. Cancellation may leave part of it sent."""
        await trio.lowlevel.checkpoint_if_cancelled()
        sent = 0
        while sent < len(data):
            while self._send_window <= 0 and not self.send_closed and not self.closed:
                with trio.move_on_after(_RECHECK):
                    await self._window_opened.wait()
            if self.send_closed or self.closed:
                raise MuxedStreamError("the stream is closed for sending")
            chunk = data[sent : sent + min(self._send_window, yamux.MAX_MESSAGE_SIZE - yamux.HEADER_SIZE)]
            self._send_window -= len(chunk)
            try:
                await self.conn._write_frame(self._header(yamux.TYPE_DATA, 0, len(chunk)) + chunk)
            except trio.Cancelled:
                self._send_window += len(chunk)  # cancelled while it waited for its turn: nothing of it was written
                raise
            sent += len(chunk)

    async def read(self, n: int | None = -1) -> bytes:
        """Return what has come, at most `n` bytes; waits for the first one. Cancellation loses nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        events, number = self.conn.stream_events, self.stream_id
        while not (buffer := self.conn.stream_buffers.get(number)):
            if self.reset_received and not self._finished:
                raise MuxedStreamReset("the stream was reset")
            event = events.get(number)
            if self.recv_closed or buffer is None or event is None:
                raise MuxedStreamEOF("the stream has ended")
            await event.wait()
            if events.get(number) is event:
                events[number] = trio.Event()
        size = len(buffer) if n is None or n < 0 else min(n, len(buffer))
        data = bytes(buffer[:size])
        del buffer[:size]
        if self.closed:
            self.conn._finalize_stream_locked(self, fully_closed=True)
        elif self._is_window_low():
            with trio.CancelScope(shield=True), suppress(BaseLibp2pError, OSError):  # the data is here, come what may
                await self._auto_tune_and_send_window_update(bytes_read=size)
        return data

    async def reset(self) -> None:
        """End the stream in both directions and wake whoever reads from it."""
        event = self.conn.stream_events.get(self.stream_id)
        await super().reset()
        if event is not None:
            event.set()

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:  # noqa: ARG002  # all are counted below
        if not self._is_window_low():
            return
        buffered = self._buffered()
        async with self.window_lock:
            grown = self._grow_to_delta(buffered) + self._apply_autotune_epoch(buffered)
        if grown:
            await self.send_window_update(grown, skip_lock=True)

    def _is_window_low(self) -> bool:
        return 2 * (self._recv_window + self._buffered()) <= self.target_recv_window

    def _buffered(self) -> int:
        return len(self.conn.stream_buffers.get(self.stream_id, b""))

    async def _tell_reset(self) -> None:
        with suppress(BaseLibp2pError, OSError):  # the connection has gone, and the stream with it
            await self.conn._write_frame(self._header(yamux.TYPE_WINDOW_UPDATE, yamux.FLAG_RST, 0))

    def _header(self, kind: int, flags: int, length: int) -> bytes:
        return struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, kind, flags, self.stream_id, length)
