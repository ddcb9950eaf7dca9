"""The host: who we are to others, where we listen, and connections and streams to peers.

Sockets are dialled and accepted here and secured by libp2p. Its own listener shares its port with any other process that asks
and runs in a task whose crash would end this process; its own dialler chooses addresses, sleeps and remembers failures in ways
that do not suit a private mesh. Nothing of libp2p is given to the caller.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import structlog
import trio
from blake3 import blake3
from libp2p.tools.anyio_service import background_trio_service

from meshnode.crypto.identity import Identity
from meshnode.errors import ConfigError, PeerError, PeerMisbehaved, PeerUnreachable
from meshnode.flow.events import first_of
from meshnode.network.addresses import Address, local_hosts, parse_address
from meshnode.network.dht import Dht
from meshnode.network.direct import Anteroom, origin_of
from meshnode.network.libp2p_connections import Arrival, Connections, StreamHandler
from meshnode.network.libp2p_streams import Carrier, LibP2PStream
from meshnode.network.relay import Relay
from meshnode.types.ids import PeerId, short

__all__ = ["ControlHost", "HostSettings", "open_host"]

_HEAD_START = 0.25  # seconds that an address has before the next one is tried beside it
_HANDSHAKES = 64  # inbound, at once
_HANDSHAKE = 10.0  # seconds for one
_STRANGER = 10.0  # seconds for a peer to show that it belongs to our network
_GOODBYE = 5.0  # seconds for all connections to close

_log = structlog.get_logger(__name__)


@attrs.frozen
class HostSettings:
    """Where to listen, and how much to take on."""

    host: str = "0.0.0.0"  # noqa: S104  # address or name to listen on
    port: int = 0  # 0: the system chooses
    network_id: str = "meshnode"
    relay_service: bool = True  # carry streams between nodes that reach only this one
    max_connections: int = 512
    dial_timeout: float = 10.0  # seconds for one address to connect and prove who is there


class ControlHost:
    """Authenticated connections to peers, and streams on them. Made by `open_host`."""

    def __init__(
        self,
        peer: PeerId,
        settings: HostSettings,
        connections: Connections,
        bound: Sequence[tuple[str, int]],
        nursery: trio.Nursery,
        refused: Callable[[str], None],
    ) -> None:
        self.peer = peer
        self._settings = settings
        self._connections = connections
        self._bound = tuple(bound)
        network = _network_name(settings.network_id)
        self._relay = Relay(peer, connections, network, self._direct_addresses, nursery)
        self._relay.open(serve=settings.relay_service)
        self._dht = Dht(peer, network, self, self.listen_addresses)
        connections.add_handler(self._dht.protocol, self._dht.serve)
        nursery.start_soon(self._dht.run)
        self._dials: dict[PeerId, trio.Event] = {}
        self._anteroom = Anteroom(_HANDSHAKES, _HANDSHAKE)
        self._strangers = Anteroom(max(1, settings.max_connections // 4), _STRANGER)
        self._sources: Counter[str] = Counter()
        self._refused = refused

    def listen_addresses(self) -> tuple[str, ...]:
        """Return our whole multiaddrs, with /p2p/, best first; last those through relays."""
        return (*self._direct_addresses(), *self._relay.addresses())

    def _direct_addresses(self) -> tuple[str, ...]:
        return tuple(str(Address(host, port, self.peer)) for bound, port in self._bound for host in local_hosts(bound))

    def connections(self) -> frozenset[PeerId]:
        """Return the peers that we are connected to."""
        return self._connections.peers()

    async def connect(self, addresses: Sequence[str]) -> PeerId:
        """Connect to the one peer that the addresses name, and return it; at once when we are connected already.

        Addresses are tried in turn, each beside the one before if that takes long, direct ones first. When all are direct, a
        relayed connection is not enough. Raises PeerUnreachable with the reason of each, PeerMisbehaved when another node
        answers there. Cancellation leaves nothing behind.
        """
        targets = self._targets(addresses)
        peer = targets[0].peer
        has_direct = any(target.is_direct for target in targets)
        only_direct = all(target.is_direct for target in targets)
        while not self._connections.is_connected(peer, directly=has_direct):
            dial = self._dials.get(peer)
            if dial is not None:
                await dial.wait()
                continue
            self._dials[peer] = dial = trio.Event()
            try:
                await self._dial_any(
                    [each for each in targets if each.is_direct or not self._connections.is_connected(peer)],
                    directly=only_direct,
                )
            finally:
                del self._dials[peer]
                dial.set()
            break
        return peer

    async def open_stream(self, peer: PeerId, protocol: str) -> LibP2PStream:
        """Open a stream to a connected peer, on a direct connection if there is one. Raises PeerUnreachable."""
        return await self._connections.open_stream(peer, protocol)

    def vouch(self, peer: PeerId) -> None:
        """Let a peer stay that has shown that it belongs to our network; a stranger is hung up on after a while."""
        self._connections.vouch(peer)

    def members(self) -> frozenset[PeerId]:
        """Return the peers that we are connected to and that are vouched for."""
        return self._connections.members()

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to a peer at once, however it behaves."""
        await self._connections.hang_up(peer)

    async def reserve_relay(self, peer: PeerId) -> str:
        """Be reachable through a connected peer as long as the connection lasts; return our address there.

        Raises PeerRefused when it does not want to, PeerUnreachable.
        """
        return await self._relay.reserve(peer)

    def relays(self) -> frozenset[PeerId]:
        """Return the peers that we can be reached through now."""
        return self._relay.relays()

    async def provide(self, key: bytes) -> None:
        """Let others of our network find us by `key`, from now until `withdraw` or the end of this host."""
        await self._dht.provide(key)

    def withdraw(self, key: bytes) -> None:
        """Stop providing `key`; it is forgotten within half an hour."""
        self._dht.withdraw(key)

    async def find_providers(self, key: bytes, limit: int = 20) -> tuple[tuple[PeerId, tuple[str, ...]], ...]:
        """Return up to `limit` others that said they provide `key`, with their addresses. Hints: any may be wrong."""
        return await self._dht.find_providers(key, limit)

    def _targets(self, addresses: Sequence[str]) -> list[Address]:
        targets, refused = [], []
        for text in addresses:
            try:
                targets.append(parse_address(text))
            except ValueError as error:
                refused.append(str(error))
        if not targets:
            raise PeerUnreachable("; ".join(refused) or "no address is known")
        peer = targets[0].peer
        if any(target.peer != peer for target in targets):
            raise PeerUnreachable("the addresses name different peers")
        if self.peer in (peer, *(target.relay for target in targets)):
            raise PeerUnreachable("this is the address of this node itself")
        return sorted(dict.fromkeys(targets), key=lambda target: not target.is_direct)

    async def _dial_any(self, targets: Sequence[Address], *, directly: bool) -> None:
        failures: dict[Address, PeerError] = {}
        succeeded = False

        async def attempt(target: Address, failed: trio.Event) -> None:
            nonlocal succeeded
            try:
                await self._dial(target)
            except PeerError as error:
                failures[target] = error
                failed.set()
            else:
                succeeded = True
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for target in targets:
                failed = trio.Event()
                nursery.start_soon(attempt, target, failed)
                with trio.move_on_after(_HEAD_START):
                    await failed.wait()
        peer = targets[0].peer
        if succeeded or self._connections.is_connected(peer, directly=directly):  # it may have dialled us meanwhile
            return
        kind = (
            PeerMisbehaved if all(isinstance(each, PeerMisbehaved) for each in failures.values()) else PeerUnreachable
        )
        reasons = "; ".join(f"{target}: {error}" for target, error in failures.items())
        raise kind(f"{short(peer)} was not reached: {reasons}")

    async def _dial(self, target: Address) -> None:
        timeout = self._settings.dial_timeout * (1 if target.is_direct else 2)
        try:
            with trio.fail_after(timeout):
                if target.relay is not None:
                    await self.connect([str(attrs.evolve(target, peer=target.relay, relay=None))])
                    await self._relay.dial(target.relay, target.peer)
                    return
                stream = await trio.open_tcp_stream(target.host, target.port)
                try:
                    carrier = Carrier(stream, stream.socket.getpeername()[:2])
                    await self._connections.secure_outbound(carrier, target.peer, relayed=False)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
        except trio.TooSlowError:
            raise PeerUnreachable(f"no answer within {timeout:g} s") from None
        except OSError as error:
            raise PeerUnreachable(_reason(error)) from error

    async def accept(self, stream: trio.SocketStream) -> None:
        """Serve a connection that came in, to its end."""
        try:
            remote = stream.socket.getpeername()
        except OSError:
            return  # it has gone again
        source = origin_of(stream)
        if self._sources[source] >= self._settings.max_connections // 2:
            self._refused("crowded")
            return  # it is closed
        self._sources[source] += 1
        try:
            arrival: Arrival | None = None
            with self._anteroom.admit(source):
                await trio.lowlevel.wait_readable(stream.socket)  # whoever says nothing costs no more than a place
                arrival = await self._connections.secure_inbound(Carrier(stream, remote[:2]), relayed=False)
            if arrival is None:  # too slow, or one of too many: each is counted, none has a line in the log
                self._refused("handshake")
                return
            # A handshake costs nothing: without a second wait those of other networks could take every place.
            with self._strangers.admit(source):
                await first_of(arrival.vouched, arrival.ended)
            if not (arrival.vouched.is_set() or arrival.ended.is_set()):
                self._refused("stranger")
                _log.debug("stranger hung up on", source=source, peer=short(arrival.peer))
                await arrival.hang_up()
            await arrival.ended.wait()
        except PeerError as error:
            self._refused("handshake")
            _log.debug("inbound connection refused", source=source, why=str(error))
        finally:
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]


@asynccontextmanager
async def open_host(
    identity: Identity,
    settings: HostSettings,
    on_stream: Mapping[str, StreamHandler],
    *,
    refused: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[ControlHost]:
    """Listen, and serve streams of the given protocols; every handler has its stream closed when it returns.

    `refused` is told of each connection that is turned away: "crowded", "handshake" when it proved nothing, or "stranger"
    when it did not show in time that it belongs to our network (`vouch`).
    Raises ConfigError when it cannot listen. An exception of a handler is logged and ends its stream only; a crash of
    libp2p cancels the body and is raised from here, in an ExceptionGroup.
    """
    listeners = await _listen(settings.host, settings.port)
    try:
        connections = Connections(identity, settings.max_connections, on_stream)
        bound = [listener.socket.getsockname()[:2] for listener in listeners]
        async with background_trio_service(connections.swarm), trio.open_nursery() as nursery:
            host = ControlHost(identity.peer, settings, connections, bound, nursery, refused)
            await connections.swarm.event_background_nursery_created.wait()
            nursery.start_soon(trio.serve_listeners, host.accept, listeners)
            nursery.start_soon(connections.close_idle)
            try:
                yield host
            finally:
                nursery.cancel_scope.cancel()
                with trio.move_on_after(_GOODBYE, shield=True):
                    await connections.hang_up_all()
    finally:
        for listener in listeners:
            listener.socket.close()


def _network_name(network_id: str) -> str:
    """Return what stands for the network in the names of protocols, by which its id cannot be found but by guessing."""
    return blake3(network_id.encode(), derive_key_context="meshnode names of protocols").hexdigest(8)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except (OSError, ExceptionGroup) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen for peers on {host} port {port}: {reason}; choose another with --p2p-port"
        ) from error


def _reason(error: OSError) -> str:
    causes = error.__cause__.exceptions if isinstance(error.__cause__, ExceptionGroup) else [error]
    return "; ".join(dict.fromkeys(str(getattr(cause, "strerror", None) or cause) for cause in causes))
