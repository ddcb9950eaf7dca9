"""A libp2p stream as the rest of the node has it: `ports.PeerStream`, with Trio's errors and nothing of libp2p."""

import trio
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from meshnode.crypto.signing import parse_peer_id
from meshnode.network.patches import SteadyStream
from meshnode.types.ids import PeerId

__all__ = ["LibP2PStream", "why"]

_CHUNK = 64 << 10  # bytes
_FAREWELL = 2.0  # seconds for the end of a stream to be written; a peer that hangs does not get it


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
