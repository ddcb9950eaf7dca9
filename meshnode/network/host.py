"""The host: who we are to others, where we listen, and connections and streams to peers.

Sockets are dialled and accepted here and secured by libp2p. Its own listener shares its port with any other process that asks
and runs in a task whose crash would end this process; its own dialler chooses addresses, sleeps and remembers failures in ways
that do not suit a private mesh. Nothing of libp2p is given to the caller.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import structlog
import trio
from libp2p.tools.anyio_service import background_trio_service

from meshnode.crypto.identity import Identity
from meshnode.errors import ConfigError, PeerError, PeerMisbehaved, PeerUnreachable
from meshnode.network.addresses import Address, local_hosts, parse_address
from meshnode.network.libp2p_connections import Connections, StreamHandler
from meshnode.network.libp2p_streams import Carrier, LibP2PStream
from meshnode.types.ids import PeerId, short

__all__ = ["ControlHost", "HostSettings", "open_host"]

_HEAD_START = 0.25  # seconds that an address has before the next one is tried beside it
_HANDSHAKES = 64  # inbound, at once
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
        self, peer: PeerId, settings: HostSettings, connections: Connections, bound: Sequence[tuple[str, int]]
    ) -> None:
        self.peer = peer
        self._settings = settings
        self._connections = connections
        self._bound = tuple(bound)
        self._dials: dict[PeerId, trio.Event] = {}
        self._handshakes = 0
        self._sources: Counter[str] = Counter()

    def listen_addresses(self) -> tuple[str, ...]:
        """Return our whole multiaddrs, with /p2p/, best first."""
        return tuple(str(Address(host, port, self.peer)) for bound, port in self._bound for host in local_hosts(bound))

    def connections(self) -> frozenset[PeerId]:
        """Return the peers that we are connected to."""
        return self._connections.peers()

    async def connect(self, addresses: Sequence[str]) -> PeerId:
        """Connect to the one peer that the addresses name, and return it; at once when we are connected already.

        Addresses are tried in turn, each beside the one before if that takes long, direct ones first. Raises PeerUnreachable
        with the reason of each, PeerMisbehaved when another node answers there. Cancellation leaves nothing behind.
        """
        targets = self._targets(addresses)
        peer = targets[0].peer
        has_direct = any(target.is_direct for target in targets)
        while not self._connections.is_connected(peer, directly=has_direct):
            dial = self._dials.get(peer)
            if dial is not None:
                await dial.wait()
                continue
            self._dials[peer] = dial = trio.Event()
            try:
                await self._dial_any(targets)
            finally:
                del self._dials[peer]
                dial.set()
            break
        return peer

    async def open_stream(self, peer: PeerId, protocol: str) -> LibP2PStream:
        """Open a stream to a connected peer, on a direct connection if there is one. Raises PeerUnreachable."""
        return await self._connections.open_stream(peer, protocol)

    async def disconnect(self, peer: PeerId) -> None:
        """Close all connections to a peer at once, however it behaves."""
        await self._connections.hang_up(peer)

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
        if peer == self.peer:
            raise PeerUnreachable("this is the address of this node itself")
        return sorted(dict.fromkeys(targets), key=lambda target: not target.is_direct)

    async def _dial_any(self, targets: Sequence[Address]) -> None:
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
        if succeeded:
            return
        kind = (
            PeerMisbehaved if all(isinstance(each, PeerMisbehaved) for each in failures.values()) else PeerUnreachable
        )
        reasons = "; ".join(f"{target}: {error}" for target, error in failures.items())
        raise kind(f"{short(targets[0].peer)} was not reached: {reasons}")

    async def _dial(self, target: Address) -> None:
        timeout = self._settings.dial_timeout
        try:
            with trio.fail_after(timeout):
                stream = await trio.open_tcp_stream(target.host, target.port)
                try:
                    await self._connections.secure_outbound(Carrier(stream, None), target.peer, relayed=False)
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
        source = str(remote[0])
        crowded = self._sources[source] >= self._settings.max_connections // 2
        if crowded or self._handshakes >= _HANDSHAKES:
            return  # it is closed
        self._sources[source] += 1
        try:
            self._handshakes += 1
            try:
                ended = await self._connections.secure_inbound(Carrier(stream, remote[:2]), relayed=False)
            finally:
                self._handshakes -= 1
            await ended.wait()
        except PeerError as error:
            _log.debug("inbound connection refused", source=source, why=str(error))
        finally:
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]


@asynccontextmanager
async def open_host(
    identity: Identity, settings: HostSettings, on_stream: Mapping[str, StreamHandler]
) -> AsyncIterator[ControlHost]:
    """Listen, and serve streams of the given protocols; every handler has its stream closed when it returns.

    Raises ConfigError when it cannot listen. An exception of a handler is logged and ends its stream only; a crash of
    libp2p cancels the body and is raised from here, in an ExceptionGroup.
    """
    listeners = await _listen(settings.host, settings.port)
    try:
        connections = Connections(identity, settings.max_connections, on_stream)
        bound = [listener.socket.getsockname()[:2] for listener in listeners]
        host = ControlHost(identity.peer, settings, connections, bound)
        async with background_trio_service(connections.swarm), trio.open_nursery() as nursery:
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
