"""Streams of libp2p as ours, and ours as libp2p's.

What comes out is a `ports.PeerStream`, with Trio's errors and nothing of libp2p. What goes in is a socket, or one of those
streams that leads through a relay.
"""

from __future__ import annotations

import os

import trio
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.stream.net_stream import NetStream
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from meshnode.crypto.signing import parse_peer_id
from meshnode.network.addresses import is_neighbour
from meshnode.network.patches import PeerHangs, SteadyStream
from meshnode.types.ids import PeerId

__all__ = ["Carrier", "Discreet", "LibP2PStream", "Negotiator", "why"]

_CHUNK = 64 << 10  # bytes
_READ_AHEAD = 16 << 10  # bytes; Noise asks for two, and then for as many as these say
_SMALL = 4 << 10  # bytes; more than a heartbeat, and less than what could keep others from their turn
_WRITE_DEADLINE = 30.0  # seconds for one message to enter the socket: longer means a peer that hangs
_LARGEST_READ = 128 << 10  # bytes; Noise asks for 64 KiB at most, a stranger's length field for whatever it says
_LONGEST_NAME = 1024  # bytes of a protocol's name
_FAREWELL = 2.0  # seconds for the end of a stream to be written; a peer that hangs does not get it


class Carrier(ReadWriteCloser):
    """Any stream of Trio's kind, for libp2p to make a connection of.

    The end is an error here: libp2p's own socket returns nothing, and is read a hundred times more before that is believed.
    """

    def __init__(self, stream: trio.SocketStream | LibP2PStream, remote: tuple[str, int] | None) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._remote = remote
        self._ahead = b""  # has come, and was not asked for yet

    async def read(self, n: int | None = None) -> bytes:
        """Return what has come, at most `n` bytes. Raises ConnectionClosedError, also for more than anybody should ask for."""
        if n is not None and n > _LARGEST_READ:  # a socket would allocate it before a byte has come
            raise ConnectionClosedError(f"the peer announces a message of {n} bytes")
        if self._ahead:
            data = self._ahead
        else:
            try:
                data = await self._stream.receive_some(None if n is None else max(n, _READ_AHEAD))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError(str(error)) from error
            if not data:
                raise ConnectionClosedError("the peer has closed the connection")
        size = len(data) if n is None else n
        self._ahead = bytes(data[size:])
        return bytes(data[:size])

    async def write(self, data: bytes) -> None:
        """Send all of `data`, even when cancelled: half of a message would be the end of the connection.

        Raises ConnectionClosedError; PeerHangs when the peer takes nothing for 30 s.
        """
        try:
            sent = self._send_now(data) if len(data) <= _SMALL else 0
            if sent == len(data):
                return
            with trio.CancelScope(deadline=trio.current_time() + _WRITE_DEADLINE, shield=True) as scope:
                await self._stream.send_all(data[sent:])
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise ConnectionClosedError(str(error)) from error
        if scope.cancelled_caught:
            raise PeerHangs(f"the peer took nothing for {_WRITE_DEADLINE:.0f} s")

    def _send_now(self, data: bytes) -> int:
        """Return how many bytes went into the socket's buffer, without a round of the loop and without a scope."""
        if self._socket is None:
            return 0
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0

    async def close(self) -> None:
        """Close it."""
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the address and port at the other end, where it has one of its own."""
        return self._remote


class Negotiator(ReadWriteCloser):
    """A stream while it is agreed what it is for: libp2p would read as much as a name is said to have."""

    def __init__(self, stream: NetStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """Return what has come, at most `n` bytes. Raises ConnectionClosedError when that is more than a name has."""
        if n is None or n > _LONGEST_NAME:
            raise ConnectionClosedError(f"the peer announces a name of {n} bytes")
        return await self._stream.read(n)

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        await self._stream.write(data)

    async def close(self) -> None:
        """Close it."""
        await self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the address and port at the other end."""
        return self._stream.get_remote_address()


class Discreet(MultiselectCommunicator):
    """Agrees on a protocol that the peer names, and tells nobody which there are: some names only our network knows."""

    async def read(self) -> str:
        """Return what the peer says. Raises MultiselectCommunicatorError when it asks for a list, which libp2p would give."""
        said = await super().read()
        if said == "ls":
            raise MultiselectCommunicatorError("the peer asks for a list of our protocols")
        return said


class LibP2PStream:
    """One stream of a multiplexed connection; many may be open to the same peer."""

    def __init__(self, stream: NetStream) -> None:
        if not isinstance(stream.muxed_stream, SteadyStream):
            raise TypeError(
                f"{type(stream.muxed_stream).__name__} does not survive cancellation; patches.apply() comes first"
            )
        peer = str(stream.muxed_conn.peer_id)
        parse_peer_id(peer)
        self.peer = PeerId(peer)
        self._stream = stream
        self._muxed = stream.muxed_stream
        self._closed = False

    @property
    def is_relayed(self) -> bool:
        """Whether a third node carries it; that node cannot read it."""
        return self._stream.muxed_conn.get_connection_type() is ConnectionType.RELAYED

    @property
    def is_lan(self) -> bool:
        """Whether it goes directly to this machine, or to one in a local network that we have an interface in."""
        remote = None if self.is_relayed else self._muxed.get_remote_address()
        return remote is not None and is_neighbour(remote[0])

    async def send_all(self, data: bytes) -> None:
        """Send `data`; waits while the peer does not read. Raises trio.BrokenResourceError when it is gone.

        Cancellation leaves the connection and its other streams alive; part of `data` may have been sent.
        """
        if self._closed:
            raise trio.ClosedResourceError("this stream has been closed here")
        try:
            await self._muxed.write(data)
        except (BaseLibp2pError, OSError) as error:
            raise self._broken(error) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return between 1 and `max_bytes` bytes, and b"" once the peer has closed. Raises trio.BrokenResourceError.

        The end is no proof that all has come. Cancellation loses nothing.
        """
        if self._closed:
            raise trio.ClosedResourceError("this stream has been closed here")
        try:
            return await self._muxed.read(_CHUNK if max_bytes is None else max_bytes)
        except MuxedStreamEOF as error:
            if self._closed:
                raise trio.ClosedResourceError("this stream has been closed here") from None
            if self._muxed.conn.event_shutting_down.is_set():
                raise self._broken(error) from error
            return b""
        except (BaseLibp2pError, OSError) as error:
            if self._closed:
                raise trio.ClosedResourceError("this stream has been closed here") from None
            raise self._broken(error) from error

    async def aclose(self) -> None:
        """Close both directions: the peer reads what was sent before, then the end, and cannot send any more."""
        if self._closed:
            return
        self._closed = True
        with trio.move_on_after(_FAREWELL, shield=True):
            try:
                await self._muxed.close()
                await self._muxed.reset()
            except (BaseLibp2pError, OSError):
                pass  # it is gone already
        with trio.CancelScope(shield=True):
            await self._stream.remove()

    def _broken(self, error: Exception) -> trio.BrokenResourceError:
        return trio.BrokenResourceError(f"the stream to {self.peer} was cut: {why(error)}")


def why(error: BaseException) -> str:
    """Return what an error of libp2p says; many of them say nothing but their name."""
    return str(error) or type(error).__name__
