"""Managers of one mesh on virtual time, each with a disk of its own; gossip comes at once, or late and not always."""

import heapq
from contextlib import asynccontextmanager
from random import Random

import attrs
import trio

from meshnode.errors import PeerUnreachable, SourceUnavailable, StoreError
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.flow.rates import FadingRates
from meshnode.placement.auto_shard import AutoShardManager, PlacementResources, PlacementSettings
from meshnode.placement.ledger import open_ledger
from meshnode.placement.wishlist import Wishlist
from meshnode.store.memory import MemoryStore
from meshnode.supervise.subsystem import Pulse
from meshnode.types.blocks import BlockRange
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo

__all__ = ["BLOCK", "COUNT", "HOUR", "Gossip", "open_mesh"]

BLOCK = 100 << 20
COUNT = 16
HOUR = 3600.0


@attrs.define(eq=False)
class Disk(MemoryStore):
    is_full: bool = False

    async def commit(self, batch, *, sync=False):
        if self.is_full:
            raise StoreError("no space left")
        await super().commit(batch, sync=sync)


@attrs.define(eq=False)
class Node:
    """What one node has on its disk, and everything that its manager needs."""

    mesh: object
    peer: str
    disk: int
    store: Disk = attrs.field(factory=Disk)
    held: dict = attrs.field(factory=dict)  # model -> set of blocks
    demand: FadingRates = attrs.field(factory=FadingRates)
    room: Latest = attrs.field(factory=lambda: Latest(None))
    hosted: Latest = attrs.field(factory=lambda: Latest(frozenset()))
    wishes: Latest = attrs.field(factory=lambda: Latest(Wishlist()))
    revision: Latest = attrs.field(factory=lambda: Latest(0))
    nudge: Latest = attrs.field(factory=lambda: Latest(0))
    entrusted: Mailbox = attrs.field(factory=lambda: Mailbox("placement", 0))
    leaving: Latest = attrs.field(factory=lambda: Latest(None))
    busy: bool = False
    free: int = 1 << 50
    awaited: int = 0  # bytes of what a person is downloading
    memory: int = 1 << 50
    unverified: set = attrs.field(factory=set)  # models
    verifying: dict = attrs.field(factory=dict)  # model -> set of blocks
    wanted: set = attrs.field(factory=set)  # models that a person asked for
    in_memory: set = attrs.field(factory=set)  # models
    origins: set = attrs.field(factory=set)  # models that it knows a hub of
    fails: bool = False
    stuck: bool = False
    asked: list = attrs.field(factory=list)
    room_left: list = attrs.field(factory=list)  # when it was asked to keep something
    scope: trio.CancelScope | None = None

    # OwnModels, Shards, MeshMembers

    def holdings(self):
        return tuple(
            Holding(model, model, COUNT, ranges(blocks), 0 in blocks, COUNT - 1 in blocks, len(blocks) * BLOCK)
            for model, blocks in self.held.items()
            if blocks
        )

    def known(self):
        return frozenset(self.held) | self.unverified

    def unchecked(self):
        return {model: ranges(blocks) for model, blocks in self.verifying.items()}

    def free_bytes(self):
        return self.free - sum(len(blocks) for blocks in self.held.values()) * BLOCK

    def awaited_bytes(self, besides):
        return self.awaited

    def pinned(self):
        return frozenset(self.wanted)

    def stages(self):
        return ()

    def loaded(self):
        return frozenset(self.in_memory)

    def loadable_bytes(self):
        return self.memory - sum(len(self.held.get(model, ())) for model in self.in_memory) * BLOCK

    async def acquire(self, model, blocks):
        self.asked.append(("acquire", model, str(blocks)))
        await trio.sleep(1e9 if self.stuck else 20)
        others = [other.held.get(model, set()) for other in self.mesh.alive() if other is not self]
        if self.fails or not set(blocks) <= set().union(self.held.get(model, ()), *others):
            raise SourceUnavailable("nobody gave it")
        self.held.setdefault(model, set()).update(blocks)

    async def keep(self, share, room):
        self.room_left.append(room)
        await self.acquire(share.model, share.blocks)

    def comes_from_outside(self, model):
        return model in self.origins

    async def acquire_from_outside(self, model, blocks):
        self.asked.append(("outside", model, str(blocks)))
        await trio.sleep(20)
        if self.fails:
            raise SourceUnavailable("the hub is down")
        self.held.setdefault(model, set()).update(blocks)

    async def drop(self, model, blocks):
        await trio.lowlevel.checkpoint()
        self.asked.append(("drop", model, str(blocks)))
        others = [other.held.get(model, set()) for other in self.mesh.alive() if other is not self]
        if not set(blocks) <= set().union(*others):
            self.mesh.lost.append((self.peer, model, str(blocks)))
        self.held[model] -= set(blocks)
        if not self.held[model]:
            del self.held[model]

    def offer(self):
        return Offer(self.peer, 1, 0.0, "1", (), holdings=self.holdings(), room=self.room.value)

    def peers(self):
        mesh = self.mesh
        offers = [other.offer() for other in mesh.alive()] if mesh.gossip is None else mesh.gossip.heard_by(self.peer)
        return tuple(
            PeerInfo(offer.peer, Liveness.ALIVE, connected=True, offer=offer)
            for offer in offers
            if offer.peer != self.peer
        )

    async def keeps(self, peer, model, blocks):
        await trio.sleep(1)
        other = self.mesh.nodes[peer]
        if peer in self.mesh.down:
            raise PeerUnreachable(f"{peer} has gone")
        leaving = other.leaving.value
        goes = leaving is not None and leaving[0] == model and leaving[1].overlap(blocks) is not None
        return not goes and set(blocks) <= other.held.get(model, set())

    # For tests

    def put(self, model, blocks=range(COUNT)):
        """A person adds it."""
        self.held.setdefault(model, set()).update(blocks)
        self.revision.set(self.revision.value + 1)

    def remove(self, model):
        """A person removes it."""
        self.held.pop(model)
        self.revision.set(self.revision.value + 1)


def ranges(blocks):
    found = []
    for block in sorted(blocks):
        if found and found[-1].end == block:
            found[-1] = BlockRange(found[-1].start, block + 1)
        else:
            found.append(BlockRange(block, block + 1))
    return tuple(found)


@attrs.define(eq=False)
class Gossip:
    """What each node says of itself again and again; some of it is lost, and the rest comes late and in any order."""

    rng: Random
    every: float = 60.0  # seconds
    latest: float = 180.0  # seconds
    lost: float = 0.3
    silence: float = 900.0  # seconds of it after which others take a node for dead
    _coming: dict = attrs.field(factory=dict)  # who hears it -> heap of (when, said when, who says it, what)
    _heard: dict = attrs.field(factory=dict)  # (who hears it, who says it) -> (said when, what)

    async def run(self, mesh):
        while True:
            now = trio.current_time()
            for node in mesh.alive():
                offer = node.offer()
                for other in mesh.nodes:
                    if self.rng.random() >= self.lost:
                        when = now + self.rng.random() * self.latest
                        heapq.heappush(self._coming.setdefault(other, []), (when, now, node.peer, offer))
            await trio.sleep(self.every)

    def heard_by(self, peer):
        now, coming = trio.current_time(), self._coming.get(peer, [])
        while coming and coming[0][0] <= now:
            _, said, sender, offer = heapq.heappop(coming)
            if said > self._heard.get((peer, sender), (-1.0, None))[0]:
                self._heard[peer, sender] = said, offer
        return [
            offer for (hearer, _), (said, offer) in self._heard.items() if hearer == peer and now - said < self.silence
        ]


@attrs.define(eq=False)
class Mesh:
    nursery: trio.Nursery
    gossip: Gossip | None = None  # None: all know all at once
    nodes: dict = attrs.field(factory=dict)
    down: set = attrs.field(factory=set)
    lost: list = attrs.field(factory=list)  # last copies that somebody has let go

    def alive(self):
        return [node for name, node in self.nodes.items() if name not in self.down]

    async def add(self, name, gib=8, **options):
        self.nodes[name] = Node(self, name, int(gib * (1 << 30)), **options)
        await self.start(name)
        return self.nodes[name]

    async def start(self, name):
        node = self.nodes[name]
        self.down.discard(name)
        resources = PlacementResources(
            own=name,
            members=node,
            models=node,
            shards=node,
            ledger=await open_ledger(node.store),
            demand=node.demand,
            is_busy=lambda: node.busy,
            room=node.room,
            hosted=node.hosted,
            wishes=node.wishes,
            nudge=node.nudge,
            entrusted=node.entrusted,
            others=node,
            leaving=node.leaving,
        )
        manager = AutoShardManager(resources, PlacementSettings(node.disk), Pulse())
        node.scope = trio.CancelScope()

        async def live(task_status):
            with node.scope:
                await manager.run(task_status=task_status)

        await self.nursery.start(live)

    def stop(self, name):
        self.down.add(name)
        self.nodes[name].scope.cancel()

    def copies(self, model):
        return [sum(block in node.held.get(model, ()) for node in self.alive()) for block in range(COUNT)]

    def asked(self):
        return [each for node in self.nodes.values() for each in node.asked]


@asynccontextmanager
async def open_mesh(gossip=None):
    async with trio.open_nursery() as nursery:
        mesh = Mesh(nursery, gossip)
        if gossip is not None:
            nursery.start_soon(gossip.run, mesh)
        yield mesh
        nursery.cancel_scope.cancel()
