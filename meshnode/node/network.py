"""Puts the network's parts together: what outlives its restarts, and what each incarnation is made of."""

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import attrs
import trio
from blake3 import blake3

from meshnode.config.schema import NodeConfig
from meshnode.crypto.identity import Identity
from meshnode.errors import ConfigError, MeshnodeError, PeerMisbehaved, RequestError
from meshnode.flow.latest import Latest
from meshnode.health.monitor import HealthMonitor, HealthResources
from meshnode.health.rebalancer import ShardRebalancer
from meshnode.inference.router import MeshAccess
from meshnode.network.address_book import AddressBook
from meshnode.network.addresses import direct_only, parse_address
from meshnode.network.dataplane import DataPlane, DataPlanePorts, DataPlaneSettings
from meshnode.network.direct import is_address
from meshnode.network.dispatcher import DispatcherResources, MessageDispatcher
from meshnode.network.gateway import StageGateway
from meshnode.network.gossip import GossipBook
from meshnode.network.greetings import Greeter
from meshnode.network.holdings import Holdings
from meshnode.network.host_ports import Discovery, Host, StagePlane
from meshnode.network.invitations import Invitation, encode_invitation
from meshnode.network.loopback import LoopbackLink
from meshnode.network.manager import DialRequest, NetworkManager, NetworkResources, NetworkSettings, Reach
from meshnode.network.peer_shards import KnownHolders
from meshnode.network.peers import PeerTable
from meshnode.network.ports import PeerStream, Shelf
from meshnode.network.upload_limits import UploadLimits
from meshnode.node.channels import Channels
from meshnode.node.children import NetworkBuilders
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.evidence import Evidence, Misdeed
from meshnode.types.ids import PeerId
from meshnode.types.peers import PeerInfo, StageOffer
from meshnode.wire.control_messages import Ticket, TicketRequest

__all__ = ["Mesh", "network_hash"]

_TICKET_TIMEOUT = 5.0  # seconds
_DIAL_TIMEOUT = 20.0


def network_hash(network_id: str) -> str:
    """Return what stands for a network in records and on disk; the id itself is what keeps others out."""
    return blake3(b"meshnode:network\0" + network_id.encode()).hexdigest()[:32]


@attrs.frozen(eq=False)
class Mesh:
    """The tables and channels of the network of one node, and the builders of its subsystems."""

    identity: Identity
    config: NodeConfig
    channels: Channels
    addresses: AddressBook
    health: HealthBoard
    metrics: Metrics
    holdings: Holdings | None = None
    shelf: Shelf | None = None
    table: PeerTable = attrs.field(init=False)
    gateway: StageGateway = attrs.field(init=False)
    book: GossipBook = attrs.field(init=False)
    port: Latest[int] = attrs.field(factory=lambda: Latest(0), init=False)  # where the last host listened; 0: none yet

    @table.default
    def _new_table(self) -> PeerTable:
        return PeerTable(self.identity.peer, self.channels.failures)

    @gateway.default
    def _new_gateway(self) -> StageGateway:
        return StageGateway(LoopbackLink(self.identity.peer, self.channels.stage_messages))

    @book.default
    def _new_book(self) -> GossipBook:
        network = network_hash(self.config.network.network_id)
        return GossipBook(self.identity, network, time.time, self.addresses.sequence)

    @property
    def peer(self) -> PeerId:
        """Who we are to others."""
        return self.identity.peer

    @property
    def view(self) -> PeerTable:
        """Who is out there."""
        return self.table

    def access(self) -> MeshAccess:
        """Return what the router needs."""
        return MeshAccess(
            self.identity.peer,
            self.table,
            self.gateway,
            self.channels.stage_messages,
            self.channels.offering,
            self.channels.evidence,
        )

    def holders(self) -> KnownHolders:
        """Return who holds shards that this node may fetch."""
        return KnownHolders(self.table, self.gateway, self.channels.evidence)

    # Subsystems

    def builders(self) -> NetworkBuilders:
        """Return how the network's subsystems are made."""
        return NetworkBuilders(self._build_manager, self._build_dispatcher, self._build_monitor, self._build_rebalancer)

    def _build_manager(self, pulse: Pulse) -> NetworkManager:
        network, channels = self.config.network, self.channels
        settings = NetworkSettings(
            network.network_id, network.bootstrap, network.announce, network.max_peers, socket.gethostname()
        )
        resources = NetworkResources(
            own=self.identity.peer,
            table=self.table,
            book=self.book,
            addresses=self.addresses,
            gateway=self.gateway,
            inbound=channels.inbound,
            control=channels.control_messages,
            dials=channels.dials,
            evidence=channels.evidence,
            offering=channels.offering,
            room=channels.room,
            holdings=self.holdings,
            shares=self.config.transfer.share,
            leaving=channels.leaving,
            listening=channels.listening,
            metrics=self.metrics,
        )
        return NetworkManager(resources, settings, self._open_host, self._stage_plane, pulse, self._discovery())

    @asynccontextmanager
    async def _open_host(self, handlers: Mapping[str, Callable[[PeerStream], Awaitable[None]]]) -> AsyncIterator[Host]:
        """Open the host, after a crash at the port of the last one if it can be had: others know this node by it."""
        from meshnode.network.host import HostSettings, open_host  # libp2p takes a second to import

        network, port = self.config.network, self._port()
        opener = partial(open_host, self.identity, on_stream=handlers, refused=self._count_refused)
        settings = HostSettings(network.host, port or self.port.value, network.network_id, network.relay)
        async with AsyncExitStack() as stack:
            try:
                host = await stack.enter_async_context(opener(settings=settings))
            except ConfigError:
                if settings.port == port:
                    raise
                host = await stack.enter_async_context(opener(settings=attrs.evolve(settings, port=port)))
            self.port.set(parse_address(host.listen_addresses()[0]).port)
            yield host

    def _count_refused(self, code: str) -> None:
        self.metrics.network_refused_total.labels(code=code).inc()

    def _discovery(self) -> Discovery | None:
        if not self.config.network.mdns:
            return None
        from meshnode.network.local_discovery import LocalDiscovery  # zeroconf too takes its time to import

        return LocalDiscovery(self.identity.peer, self.config.network.network_id)

    def _build_dispatcher(self, pulse: Pulse) -> MessageDispatcher:
        channels = self.channels
        resources = DispatcherResources(
            channels.inbound,
            channels.stage_messages,
            channels.control_messages,
            channels.evidence,
            self.metrics,
            channels.inbound_stages,
        )
        return MessageDispatcher(resources, pulse)

    def _build_monitor(self, pulse: Pulse) -> HealthMonitor:
        channels = self.channels
        resources = HealthResources(
            self.table,
            channels.evidence,
            channels.failures,
            channels.membership,
            self.health,
            self.metrics,
            channels.offering,
        )
        return HealthMonitor(resources, pulse, expects_peers=bool(self.config.network.bootstrap))

    def _build_rebalancer(self, pulse: Pulse) -> ShardRebalancer:
        return ShardRebalancer(self.channels.membership, self.channels.rebalance, pulse)

    def _port(self) -> int:
        """Return the port for peers: the API's plus ten, any if that is any."""
        network, api = self.config.network, self.config.api
        if network.port is not None:
            return network.port
        return api.port + 10 if 0 < api.port <= 65525 else 0

    def _stage_plane(self, reach: Reach, host: Host) -> StagePlane:
        async def ask_ticket(peer: PeerId, request: TicketRequest) -> Ticket:
            answer = await (await reach(peer)).ask(request, timeout=_TICKET_TIMEOUT)
            if not isinstance(answer.message, Ticket):
                raise PeerMisbehaved(f"{peer} answered a request for a ticket with {type(answer.message).__name__}")
            return answer.message

        ports = DataPlanePorts(
            reach=reach,
            ask_ticket=ask_ticket,
            open_stream=host.open_stream,
            deliver=self.channels.inbound_stages.tell,
            hosts=partial(_hosts, host.listen_addresses, self.config.network.announce),
            report=self._report,
            shelf=self.shelf,
        )
        network = self.config.network
        listen = DataPlaneSettings().listen if network.host == "0.0.0.0" else (network.host,)  # noqa: S104  # compared
        greeter = Greeter(self.identity.peer, network.network_id)
        transfer = self.config.transfer
        uploads = UploadLimits(transfer.upload_bytes_per_second, transfer.upload_bytes_per_second_per_peer)
        settings = DataPlaneSettings(listen, network.data_port, bulk_port=network.bulk_port, uploads=uploads)
        return DataPlane(greeter, ports, settings)

    def _report(self, peer: PeerId | None, error: MeshnodeError) -> None:
        """Hold against a peer what it did; strangers are only counted."""
        misdeed = Misdeed.MALFORMED
        if peer is None or not isinstance(error, PeerMisbehaved):
            self._count_refused(error.code)
            return
        try:
            self.channels.evidence.tell_nowait(Evidence(peer, misdeed, str(error)))
        except trio.WouldBlock:
            return

    # For the API

    def peers(self) -> list[dict[str, object]]:
        """Return all peers as JSON values."""
        return [_row(info) for info in self.table.peers()]

    def listen_addresses(self) -> tuple[str, ...]:
        """Return our multiaddrs."""
        return self.channels.listening.value

    def invitation(self) -> str:
        """Return a code that leads here. Raises RequestError while nobody could come."""
        addresses = self.listen_addresses()
        if not addresses:
            raise RequestError("this node is not listening for peers yet; try again in a moment")
        return encode_invitation(Invitation(self.config.network.network_id, addresses))

    async def join(self, addresses: tuple[str, ...]) -> str:
        """Connect to the node at these addresses and return its id. Raises RequestError and PeerError leafs."""
        for address in addresses:
            try:
                parse_address(address)
            except ValueError as error:
                raise RequestError(str(error), param="addresses") from error
        with trio.move_on_after(_DIAL_TIMEOUT):
            return await self.channels.dials.ask(DialRequest(addresses))
        raise RequestError(f"no answer within {_DIAL_TIMEOUT:.0f} s; is that node running, and its port open?")


def _hosts(listen_addresses: Callable[[], tuple[str, ...]], announced: tuple[str, ...]) -> list[str]:
    """Return where direct links lead: our first address, then what is announced, which many others must not crowd out."""
    first, *others = direct_only(listen_addresses()) or ("",)
    found = [parse_address(address).host for address in (first, *direct_only(announced), *others) if address]
    return list(dict.fromkeys(filter(is_address, found)))


def _row(info: PeerInfo) -> dict[str, object]:
    offer = info.offer
    return {
        "peer": info.peer,
        "node": "" if offer is None else offer.node,
        "state": info.liveness.value,
        "connected": info.connected,
        "relayed": info.relayed,
        "round_trip_ms": None if info.round_trip is None else round(info.round_trip * 1e3, 2),
        "version": "" if offer is None else offer.version,
        "sessions": 0 if offer is None else offer.sessions,
        "addresses": info.addresses,
        "failures": info.failures,
        "room_bytes": 0 if offer is None else offer.room_bytes,
        "stages": [] if offer is None else [_stage(stage) for stage in offer.stages],
    }


def _stage(stage: StageOffer) -> dict[str, object]:
    return {
        "model": stage.name,
        "id": stage.model,
        "blocks": str(stage.blocks),
        "of": stage.block_count,
        "embedding": stage.embedding,
        "head": stage.head,
        "drift_class": stage.drift_class,
        "block_ms": round(stage.block_seconds * 1e3, 3),
        "free_tokens": stage.free_tokens,
    }
