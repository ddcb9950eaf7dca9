"""Connections of the libp2p swarm: sockets become Noise and yamux, and streams on them speak one protocol each.

The swarm dials and listens to nothing itself; it is given what is connected already, a socket or a stream through a relay.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import cast

import attrs
import structlog
import trio
from libp2p.abc import INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from meshnode.crypto.identity import Identity
from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerUnreachable
from meshnode.network import patches
from meshnode.network.libp2p_streams import Discreet, LibP2PStream, Negotiator, why
from meshnode.types.ids import PeerId, short

__all__ = ["Arrival", "Connections", "StreamHandler"]

_HANDSHAKE = 10  # seconds, for a connection to become secure and for a stream to agree on its protocol
_STREAMS = 64  # open at once on one connection
_PER_PEER = 8  # connections: one each way, direct and relayed, and room for those that are just being replaced
_IDLE = 60.0  # seconds without a stream after which a connection is closed

_NOWHERE = Multiaddr("/ip4/0.0.0.0/tcp/0")  # libp2p wants the address of the listener, for its log

_log = structlog.get_logger(__name__)

StreamHandler = Callable[[LibP2PStream], Awaitable[None]]


@attrs.frozen(eq=False)
class Arrival:
    """A connection that a peer has opened. The handshake says who it is, and nothing of what it wants here."""

    peer: PeerId
    ended: trio.Event
    vouched: trio.Event  # the peer belongs to our network
    hang_up: Callable[[], Awaitable[None]]  # ends this one; others to the same peer stay


class Connections:
    """All connections of this node, and the streams that peers open on them."""

    def __init__(self, identity: Identity, limit: int, handlers: Mapping[str, StreamHandler]) -> None:
        patches.apply()
        keys = create_new_key_pair(identity.seed)
        store = PeerStore()
        own = ID.from_pubkey(keys.public_key)
        store.add_key_pair(own, keys)
        noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
        config = ConnectionConfig(
            max_connections=limit,
            high_watermark=limit,  # never reached: nothing is pruned to make room for a newcomer
            low_watermark=0,  # nothing is dialled on its own account
            min_connections=0,
            max_connections_per_peer=_PER_PEER,
            inbound_upgrade_timeout=_HANDSHAKE,
            outbound_upgrade_timeout=_HANDSHAKE,
        )
        upgrader = TransportUpgrader({NOISE: noise}, {TProtocol(YAMUX): patches.SteadyYamux})
        self.swarm = Swarm(own, store, upgrader, [], RetryConfig(max_retries=0), config)
        self.swarm.notifees.clear()  # bookkeeping for what is switched off
        self.swarm.auto_connector = _NoAutoConnector(self.swarm)
        self.swarm.set_stream_handler(self._accept_stream)
        self._handlers = dict(handlers)
        self._protocols: Multiselect = Multiselect(dict.fromkeys(map(TProtocol, handlers), self._unused))
        self._negotiation = MultiselectClient()
        self._vouched: dict[PeerId, trio.Event] = {}

    def add_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Let peers open streams of a protocol that names our network.

        Whoever knows the name is vouched for: it is said to nobody who has not shown that they belong (`Discreet`, `members`).
        """

        async def vouching(stream: LibP2PStream) -> None:
            self.vouch(stream.peer)
            await handler(stream)

        self._handlers[protocol] = vouching
        self._protocols.add_handler(TProtocol(protocol), self._unused)

    def vouch(self, peer: PeerId) -> None:
        """Say that a peer belongs to our network; this holds for as long as it is connected."""
        self._vouching(peer).set()

    def _vouching(self, peer: PeerId) -> trio.Event:
        return self._vouched.setdefault(peer, trio.Event())

    def peers(self) -> frozenset[PeerId]:
        """Return whom we are connected to."""
        return frozenset(PeerId(str(peer)) for peer in list(self.swarm.connections) if self._live(peer))

    def members(self) -> frozenset[PeerId]:
        """Return whom we are connected to and who is vouched for."""
        return frozenset(peer for peer in self.peers() if self._vouching(peer).is_set())

    def is_connected(self, peer: PeerId, *, directly: bool = False) -> bool:
        """Say whether there is a connection, or a direct one."""
        return any(not directly or not _is_relayed(connection) for connection in self._live(ID.from_base58(peer)))

    async def secure_outbound(self, raw: ReadWriteCloser, peer: PeerId, *, relayed: bool) -> None:
        """Make a connection of what leads to `peer`. Closes it and raises PeerUnreachable, PeerMisbehaved when that fails."""
        connection = RawConnection(raw, True, ConnectionType.RELAYED if relayed else ConnectionType.DIRECT)
        try:
            with trio.fail_after(_HANDSHAKE):
                await self.swarm.upgrade_outbound_raw_conn(connection, ID.from_base58(peer))
        except trio.TooSlowError:
            raise PeerUnreachable(f"no handshake within {_HANDSHAKE} s") from None
        except Exception as error:  # what a stranger sends runs through parsers that raise anything
            if _names_another_peer(error):
                raise PeerMisbehaved(f"another node than {short(peer)} answers there") from error
            raise PeerUnreachable(f"the handshake failed: {why(error)}") from error

    async def secure_inbound(self, raw: ReadWriteCloser, *, relayed: bool) -> Arrival:
        """Make a connection of what a peer has opened. Raises PeerUnreachable."""
        connection = RawConnection(raw, False, ConnectionType.RELAYED if relayed else ConnectionType.DIRECT)
        try:
            muxed = cast("patches.SteadyYamux", await self.swarm.upgrade_inbound_raw_conn(connection, _NOWHERE))
        except Exception as error:  # see above
            raise PeerUnreachable(f"the handshake failed: {why(error)}") from error
        peer = PeerId(str(muxed.peer_id))
        return Arrival(peer, muxed.event_closed, self._vouching(peer), muxed.close)

    async def open_stream(self, peer: PeerId, protocol: str) -> LibP2PStream:
        """Open a stream on the best connection. Raises PeerUnreachable."""
        # Direct ones first, and the oldest of those.
        connections = sorted(self._live(ID.from_base58(peer)), key=_is_relayed)
        if not connections:
            raise PeerUnreachable(f"there is no connection to {short(peer)}")
        connection = connections[0]
        if len(connection.streams) >= _STREAMS:
            raise PeerUnreachable(f"{_STREAMS} streams to {short(peer)} are open already")
        stream: NetStream | None = None
        try:
            with trio.fail_after(_HANDSHAKE):
                with trio.CancelScope(shield=True):  # else a cancellation loses a stream that is half open
                    stream = opened = await connection.new_stream()
                await self._negotiation.select_one_of(
                    [TProtocol(protocol)], MultiselectCommunicator(Negotiator(opened)), _HANDSHAKE
                )
                return LibP2PStream(opened)
        except trio.TooSlowError:
            await _discard(stream)
            raise PeerUnreachable(f"{short(peer)} did not answer within {_HANDSHAKE} s") from None
        except MultiselectClientError as error:
            await _discard(stream)
            raise PeerUnreachable(f"{short(peer)} does not speak {protocol}, or is busy: {error}") from error
        except (BaseLibp2pError, OSError, ValueError) as error:
            await _discard(stream)
            raise PeerUnreachable(f"the connection to {short(peer)} was lost: {why(error)}") from error
        except BaseException:
            await _discard(stream)
            raise

    async def hang_up(self, peer: PeerId) -> None:
        """Close all connections to a peer at once; a peer that hangs cannot delay it."""
        await self._close(self.swarm.get_connections(ID.from_base58(peer)))

    async def hang_up_all(self) -> None:
        """Close everything."""
        await self._close(self.swarm.get_connections())

    async def close_idle(self) -> None:
        """Close connections that nobody uses, and forget who has gone, for as long as it is not cancelled."""
        unused: dict[int, float] = {}
        while True:
            await trio.sleep(_IDLE / 4)
            now = trio.current_time()
            idle = {id(each): each for each in self.swarm.get_connections() if not each.get_streams()}
            unused = {key: unused.get(key, now) for key in idle}
            await self._close([idle[key] for key, since in unused.items() if now - since >= _IDLE])
            here = self.peers()
            self._vouched = {peer: vouched for peer, vouched in self._vouched.items() if peer in here}

    async def _close(self, connections: Iterable[INetConn]) -> None:
        for connection in connections:
            await connection.muxed_conn.close()
        await trio.lowlevel.checkpoint()

    def _live(self, peer: ID) -> list[SwarmConn]:
        connections = self.swarm.get_connections(peer)
        return [each for each in connections if isinstance(each, SwarmConn) and _is_live(each)]

    async def _accept_stream(self, stream: INetStream) -> None:
        """Serve a stream to its end. Nothing that goes wrong with it ends more than the stream."""
        if not isinstance(stream, NetStream):
            raise TypeError(f"{type(stream).__name__} is not a stream of the swarm")
        try:
            connection = stream.swarm_conn
            if connection is None or len(connection.streams) > _STREAMS:
                return
            protocol, _ = await self._protocols.negotiate(Discreet(Negotiator(stream)), _HANDSHAKE)
            handler = None if protocol is None else self._handlers.get(str(protocol))
            if handler is None:
                return
            ours = LibP2PStream(stream)
            try:
                await handler(ours)
            finally:
                await ours.aclose()
        except (BaseLibp2pError, MeshnodeError, trio.BrokenResourceError) as error:
            _log.debug("stream lost", peer=short(str(stream.muxed_conn.peer_id)), error=str(error))
        except Exception:  # noqa: BLE001  # one stream's trouble is not the node's
            _log.exception("stream handler failed", peer=short(str(stream.muxed_conn.peer_id)))
        except BaseExceptionGroup as group:
            cancelled, failed = group.split(trio.Cancelled)
            if failed is not None:
                _log.error("stream handler failed", peer=short(str(stream.muxed_conn.peer_id)), exc_info=failed)
            if cancelled is not None:
                raise cancelled from None
        finally:
            await _discard(stream)

    @staticmethod
    async def _unused(_: INetStream) -> None:
        """Stand where libp2p wants a handler; ours take another kind of stream."""


class _NoAutoConnector(AutoConnector):
    """Connects to nobody: libp2p's own wants half the limit of connections, whatever the low watermark is."""

    async def maybe_connect(self) -> None:
        """Do nothing."""


def _is_relayed(connection: SwarmConn) -> bool:
    return connection.get_connection_type() is ConnectionType.RELAYED


def _is_live(connection: SwarmConn) -> bool:
    muxed = connection.muxed_conn
    return (
        not connection.is_closed and isinstance(muxed, patches.SteadyYamux) and not muxed.event_shutting_down.is_set()
    )


async def _discard(stream: NetStream | None) -> None:
    """Reset a stream unless it has ended."""
    if stream is not None:
        with trio.move_on_after(2.0, shield=True):
            await stream.reset()


def _names_another_peer(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, PeerIDMismatchesPubkey) or "Peer ID mismatch" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
