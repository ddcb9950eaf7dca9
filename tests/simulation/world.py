"""A mesh in memory, on virtual time: the real NetworkManager, gossip, dispatcher, health monitor, router and planner of every node.

Made of memory are the host (streams, see `streams`), the direct links of the data plane (there are none: everything goes over
the host), and the model (a chain of hashes, so that a wrong, missing or doubled row shows in every later token).
"""

import functools
from contextlib import asynccontextmanager
from functools import partial
from random import Random

import attrs
import trio
from support.toy_executor import ToyExecutor
from support.toy_rings import ToyRings

from meshnode.crypto.identity import Identity
from meshnode.errors import PeerUnreachable
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.health.monitor import HealthMonitor, HealthResources
from meshnode.inference.assets import ModelAssets
from meshnode.inference.model_loading import ModelTables
from meshnode.inference.models import EngineSettings
from meshnode.inference.router import MeshAccess, RouterResources, RouterSettings
from meshnode.network import gossip
from meshnode.network.address_book import open_address_book
from meshnode.network.dataplane import DataPlane, DataPlanePorts
from meshnode.network.dialing import peer_of
from meshnode.network.dispatcher import DispatcherResources, MessageDispatcher
from meshnode.network.gateway import StageGateway
from meshnode.network.gossip import GossipBook
from meshnode.network.greetings import Greeter
from meshnode.network.loopback import LoopbackLink
from meshnode.network.manager import NetworkManager, NetworkResources, NetworkSettings
from meshnode.network.peers import PeerTable
from meshnode.node.channels import Channels
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.rings import RingPlace
from simulation.shelf import Shelf
from simulation.streams import stream_pair
from simulation.watch import WatchedRouter

__all__ = ["SimNode", "SimWorld", "load_assets"]

NETWORK = "simulated"
VOCABULARY = 64
PACE = 8e-3  # seconds per row and block: an answer takes a second or so, in which things go wrong
ENGINE = EngineSettings("cpu", 1, 0, 1 << 20, 8)
SETTINGS = RouterSettings(ENGINE, queue_length=64, max_concurrent=16, request_timeout=300.0, prefill_chunk=8)


gossip.verify = functools.lru_cache(1 << 12)(gossip.verify)  # fifty nodes of one process verify the same records
load_assets = functools.cache(ModelAssets.load)  # by all nodes of all seeds: it takes longer than all else


class InlineLanes(Lanes):
    """Runs blocking work at once: a thread would not know of virtual time."""

    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await trio.lowlevel.checkpoint()
        return load_assets(*args) if function == ModelAssets.load else function(*args)


class SimPlane(DataPlane):
    """The data plane of a node that nobody can reach directly."""

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._close_idle)
            task_status.started()
            await trio.sleep_forever()

    def ring_place(self):
        return RingPlace((), (self._greeter.own,), b"", b"")


class SimRings(ToyRings):
    """Links between workers, over the same ways as those between nodes."""

    def _latency(self, own, peer):
        return self.network.latency(own, peer)

    def _sent(self, own, peer, lap, body):
        return [(self._latency(own, peer), lap, body)]

    async def _awake(self, peer):
        """Do nothing: machines here are without power or whole."""

    def _is_apart(self, one, other):
        return not {one, other} <= set(self.network.hosts) or self.network.is_apart(one, other)


@attrs.define(eq=False)
class SimHost:
    """What libp2p would be."""

    world: "SimWorld"
    peer: str
    handlers: dict
    nursery: trio.Nursery
    streams: list = attrs.field(factory=list)
    connected: set = attrs.field(factory=set)  # peers

    def listen_addresses(self):
        return (f"/memory/p2p/{self.peer}",)

    async def connect(self, addresses):
        peer = peer_of(addresses)
        await trio.sleep(self.world.latency(self.peer, peer))
        if peer not in self.world.hosts or self.world.is_apart(self.peer, peer):
            raise PeerUnreachable(f"{peer} does not answer")
        self.connected.add(peer)
        self.world.hosts[peer].connected.add(self.peer)
        return peer

    async def open_stream(self, peer, protocol):
        await trio.sleep(self.world.latency(self.peer, peer))
        if peer not in self.connected:
            raise PeerUnreachable(f"there is no connection to {peer}")
        other = self.world.hosts.get(peer)
        if other is None or self.world.is_apart(self.peer, peer):
            raise PeerUnreachable(f"{peer} does not answer")
        near, far = stream_pair(self.world, self.peer, peer)
        self.streams.append(near)
        other.streams.append(far)
        other.nursery.start_soon(other.handle, protocol, far)
        return near

    async def handle(self, protocol, stream):
        try:
            await self.handlers[protocol](stream)
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()

    async def disconnect(self, peer):
        await trio.lowlevel.checkpoint()

    def vouch(self, peer):
        """Nobody is a stranger here: the door is not simulated."""

    def members(self):
        return self.connected

    def relays(self):
        """Return as many as anybody wants: nobody asks for a place, with pauses that no seed decides."""
        return ("a relay", "another")

    async def reserve_relay(self, peer):
        await trio.lowlevel.checkpoint()
        raise PeerUnreachable("nobody relays here")


@attrs.define(eq=False)
class SimNode:
    """One node: what its disk keeps, and its present process."""

    world: "SimWorld"
    identity: Identity
    blocks: range
    store: MemoryStore = attrs.field(factory=MemoryStore)
    scope: trio.CancelScope | None = None
    executor: ToyExecutor | None = None
    channels: Channels | None = None
    table: PeerTable | None = None
    book: GossipBook | None = None
    router: WatchedRouter | None = None
    max_peers: int = 64
    skew: float = 0.0  # seconds that its clock is ahead
    parts: dict[str, trio.CancelScope] = attrs.field(factory=dict)  # subsystem -> its present incarnation
    since: float = 0.0  # when its process began

    @property
    def peer(self):
        return self.identity.peer

    @property
    def is_up(self):
        return self.scope is not None

    async def start(self):
        """Begin a new process; returns once its network is up."""
        ready = trio.Event()
        self.scope, self.since = trio.CancelScope(), trio.current_time()
        self.world.nursery.start_soon(self._live, self.scope, ready)
        await ready.wait()

    def crash(self, *, silent=False):
        """SIGKILL, and streams break; or, `silent`, the power is cut, and nobody is told."""
        if silent:
            self.world.silence(self.peer)
        self.scope.cancel()
        self.scope = self.executor = self.channels = self.table = self.book = self.router = None
        self.world.drop(self.peer)

    def crash_part(self, name):
        """Have a subsystem fail; the node goes on, and starts it again."""
        self.parts[name].cancel()

    def clock(self):
        return self.world.clock() + self.skew

    async def _live(self, scope, ready):
        with scope:
            own, world, metrics, health = self.peer, self.world, Metrics(), HealthBoard()
            channels = self.channels = Channels()
            table = self.table = PeerTable(own, channels.failures)
            book = self.book = GossipBook(self.identity, NETWORK, self.clock)
            gateway = StageGateway(LoopbackLink(own, channels.stage_messages))
            network = NetworkResources(
                own=own,
                table=table,
                book=book,
                addresses=await open_address_book(self.store, NETWORK),
                gateway=gateway,
                inbound=channels.inbound,
                control=channels.control_messages,
                dials=channels.dials,
                evidence=channels.evidence,
                offering=channels.offering,
                listening=channels.listening,
            )
            bootstrap = tuple(f"/memory/p2p/{peer}" for peer in world.bootstrap if peer != own)
            settings = NetworkSettings(NETWORK, bootstrap, (), self.max_peers, own[-4:])

            def manager():
                made = NetworkManager(
                    network, settings, partial(world.open_host, own), partial(_plane, own, channels), Pulse()
                )
                made._dialling.random = Random(world.random.random())
                made._links.random = Random(world.random.random())
                return made

            shelf = Shelf(world.manifest, world.folder, self.blocks)
            wanted = frozenset({world.manifest.id} if self.blocks else ())
            routing = RouterResources(
                channels.generations,
                ModelTables(shelf, Latest(wanted), Latest({})),
                MeshAccess(own, table, gateway, channels.stage_messages, channels.offering, channels.evidence),
                InlineLanes(),
                metrics,
                health,
            )

            def router():
                self.router = WatchedRouter(routing, SETTINGS, self._build, Pulse())
                return self.router

            dispatcher = DispatcherResources(
                channels.inbound,
                channels.stage_messages,
                channels.control_messages,
                channels.evidence,
                metrics,
                channels.inbound_stages,
            )
            monitor = HealthResources(table, channels.evidence, channels.failures, channels.membership, health, metrics)
            async with trio.open_nursery() as nursery:
                for name, build in {
                    "network": manager,
                    "dispatcher": lambda: MessageDispatcher(dispatcher, Pulse()),
                    "monitor": lambda: HealthMonitor(monitor, Pulse(), expects_peers=False),
                    "router": router,
                }.items():
                    await nursery.start(self._keep, name, build)
                ready.set()

    async def _keep(self, name, build, *, task_status):
        """Restart a subsystem when it crashes, as the supervisor does."""
        while True:
            with trio.CancelScope() as self.parts[name]:
                async with trio.open_nursery() as nursery:
                    await nursery.start(build().run)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(0.2)

    def _build(self, spec):
        self.executor = ToyExecutor(
            self.world.manifest.config.block_count,
            spec.blocks,
            embedding=spec.embedding,
            head=spec.head,
            vocabulary=VOCABULARY,
            pace=PACE,
            rings=self.world.rings,
        )
        return self.executor

    def alive_peers(self):
        """Return whom this node would use."""
        return {info.peer for info in self.table.peers() if info.liveness.value != "dead" and info.offer is not None}


def _plane(own, channels, reach, host):
    async def ask_ticket(peer, asked):
        return (await (await reach(peer)).ask(asked, timeout=5.0)).message

    ports = DataPlanePorts(
        reach=reach,
        ask_ticket=ask_ticket,
        open_stream=host.open_stream,
        deliver=channels.inbound_stages.tell,
        hosts=list,
        report=lambda peer, error: None,
    )
    return SimPlane(Greeter(own, NETWORK), ports)


@attrs.define(eq=False)
class SimWorld:
    """All nodes, and what lies between them."""

    nursery: trio.Nursery
    random: Random
    manifest: object
    folder: object
    delay: float = 0.002  # seconds one way, at most twice that
    nodes: list = attrs.field(factory=list)
    hosts: dict = attrs.field(factory=dict)  # by peer
    ways: list = attrs.field(factory=list)
    cuts: dict = attrs.field(factory=dict)  # name of a cut -> peers on one side of it, whether it goes one way only
    remains: dict = attrs.field(factory=dict)  # peer -> streams of a process that went without a word
    bootstrap: tuple = ()
    rings: SimRings = attrs.field(default=attrs.Factory(SimRings, takes_self=True))

    def clock(self):
        return 1.8e9 + trio.current_time()

    def latency(self, source, target):
        late = self.delay * (1 + self.random.random())
        return late + self.random.uniform(0.2, 1.0) if self.random.random() < 0.002 else late  # a lost packet

    def is_cut(self, source, target):
        """Whether nothing gets from one to the other now."""
        for side, one_way in self.cuts.values():
            if (source in side) != (target in side) and (source in side or not one_way):
                return True
        return False

    def is_apart(self, one, other):
        return self.is_cut(one, other) or self.is_cut(other, one)

    def cut(self, name, side, *, one_way=False):
        """Let nothing pass between `side` and the others; with `one_way` only what goes out of `side` is lost."""
        self.cuts[name] = (frozenset(side), one_way)

    def heal(self, name):
        self.cuts.pop(name, None)
        for way in self.ways:
            way.tell()

    def add(self, blocks):
        skew = self.random.uniform(-3600, 3600) if self.random.random() < 0.3 else 0.0
        self.nodes.append(SimNode(self, Identity(self.random.randbytes(32)), blocks, skew=skew))
        return self.nodes[-1]

    @asynccontextmanager
    async def open_host(self, peer, handlers):
        for stream in self.remains.pop(peer, ()):
            stream.sever()  # the new process knows nothing of them
        self.part(peer)
        async with trio.open_nursery() as nursery:
            host = self.hosts[peer] = SimHost(self, peer, handlers, nursery)
            try:
                yield host
            finally:
                self.drop(peer, host)
            nursery.cancel_scope.cancel()

    def silence(self, peer):
        """A machine is without power: nothing comes out of it any more, not even that its streams have ended."""
        gone = self.hosts.pop(peer, None)
        if gone is not None:
            self.remains[peer] = gone.streams
            for stream in gone.streams:
                stream.lose()

    def part(self, peer):
        """No connection leads to what a host was before."""
        for other in self.hosts.values():
            other.connected.discard(peer)

    def drop(self, peer, host=None):
        """A host is gone: all of its streams break."""
        found = self.hosts.get(peer)
        if found is not None and (host is None or found is host):
            del self.hosts[peer]
            self.part(peer)
        gone = host or found
        if gone is not None and self.remains.get(peer) is gone.streams:
            return
        for stream in gone.streams if gone is not None else ():
            stream.sever()
        self.ways = [way for way in self.ways if not way.broken]
