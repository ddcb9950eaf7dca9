"""A network in memory and on virtual time: nodes, links with latency, and everything that happens to them."""

from contextlib import asynccontextmanager
from random import Random

import attrs
import trio

from meshnode.errors import PeerUnreachable
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.network.loopback import LoopbackLink
from meshnode.network.stage_links import Received
from meshnode.types.ids import PeerId
from meshnode.types.peers import Liveness, Offer, PeerInfo
from meshnode.types.rings import RingPlace
from meshnode.wire.failures import Failed, error_from

__all__ = ["MemoryNetwork"]


class MemoryLink:
    """One end of a link; messages arrive in order, each after the network's latency."""

    def __init__(self, network, own, peer):
        self.network, self.own, self.peer = network, own, peer
        self.closed = trio.Event()
        self.twin = None
        self._asked, self._next = {}, 1
        self._queue, self._room = trio.open_memory_channel(10_000)

    async def send(self, message, body=b"", exchange=0):
        await trio.lowlevel.checkpoint()
        self.send_nowait(message, body, exchange)

    def send_nowait(self, message, body=b"", exchange=0):
        if self.closed.is_set():
            raise PeerUnreachable(f"the link to {self.peer} has ended")
        self.network.sent += 1
        self.network.seen.append((self.own, self.peer, message, body))
        at = trio.current_time() + self.network.latency()
        for late, *sent in self.network.tamper(self.own, self.peer, message, body):
            self._queue.send_nowait((at + late, exchange, *sent))

    async def ask(self, message, body=b"", *, timeout):
        exchange, self._next = self._next, self._next + 1
        answer = self._asked[exchange] = [trio.Event(), None]
        try:
            with trio.move_on_after(timeout):
                await self.send(message, body, exchange)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, self.closed, nursery.cancel_scope)
                    await answer[0].wait()
                    nursery.cancel_scope.cancel()
        finally:
            del self._asked[exchange]
        if answer[1] is None:
            raise PeerUnreachable(f"{self.peer} did not answer")
        if isinstance(answer[1].message, Failed):
            raise error_from(answer[1].message)
        return answer[1]

    async def carry(self):
        """Bring what is sent here to the other end."""
        async for at, exchange, message, body in self._room:
            await trio.sleep_until(at)
            node = self.network.nodes.get(self.peer)
            while node is not None and node.frozen:
                await node.thawed.wait()
            if self.closed.is_set() or node is None:
                return
            await self.twin.arrive(exchange, message, body)

    async def arrive(self, exchange, message, body):
        """Take a message from the other end."""
        received = Received(self, exchange, message, body)
        asked = self._asked.get(exchange) if exchange and type(message).__name__ in _ANSWERS else None
        if asked is not None:
            asked[1] = received
            asked[0].set()
        else:
            await self.network.nodes[self.own].received.tell(received)

    def close(self, why=""):
        self.closed.set()
        self.twin.closed.set()


_ANSWERS = {"StageOpened", "Failed", "ProbeReply"}


async def _cancel_after(event, scope):
    await event.wait()
    scope.cancel()


@attrs.define(eq=False)
class MemoryNode:
    """A node as the network knows it."""

    network: "MemoryNetwork"
    peer: PeerId
    received: Mailbox = attrs.field(factory=lambda: Mailbox("stages", 64))
    changed: Latest = attrs.field(factory=lambda: Latest(0))
    links: dict = attrs.field(factory=dict)
    frozen: bool = False
    thawed: trio.Event = attrs.field(factory=trio.Event)
    stages: object = tuple  # called: its StageOffers
    holdings: tuple = ()  # what it has on disk
    sequence: object = lambda: 1  # called: changes with what the node says of itself

    # MeshView

    def peers(self):
        return tuple(
            PeerInfo(
                node.peer,
                Liveness.ALIVE,
                connected=True,
                lan=any({self.peer, node.peer} <= lan for lan in self.network.lans),
                round_trip=2 * self.network.delay,
                offer=node.offer(),
            )
            for node in self.network.nodes.values()
            if node is not self and not self.network.cut(self.peer, node.peer)
        )

    def offer(self):
        return Offer(self.peer, self.sequence(), 0.0, "1", (), tuple(self.stages()), holdings=self.holdings)

    # StageLinks

    async def to(self, peer):
        await trio.lowlevel.checkpoint()
        if peer not in self.links or self.links[peer].closed.is_set():
            if peer == self.peer:
                self.links[peer] = LoopbackLink(peer, self.received)
                return self.links[peer]
            await trio.sleep(self.network.dialling)
            if peer not in self.network.nodes or self.network.cut(self.peer, peer):
                raise PeerUnreachable(f"{peer} is not there")
            self.links[peer] = self.network.connect(self, self.network.nodes[peer])
        return self.links[peer]

    def existing(self, peer):
        link = self.links.get(peer)
        return None if link is None or link.closed.is_set() else link

    def ring_place(self):
        return RingPlace((), (self.peer,), b"", b"")

    def activations_pass(self):
        pass


@attrs.define(eq=False)
class MemoryNetwork:
    """All nodes."""

    nursery: trio.Nursery
    delay: float = 0.001  # seconds one way
    jitter: float = 0.0  # seconds at most on top
    random: Random = attrs.field(factory=lambda: Random(0))
    nodes: dict = attrs.field(factory=dict)
    lans: list = attrs.field(factory=list)  # sets of peers; one may be in several
    cuts: set = attrs.field(factory=set)  # frozensets of two peers
    dialling: float = 0.0  # seconds until a new link is there
    sent: int = 0
    tamper: object = lambda _own, _peer, message, body: [(0.0, message, body)]  # called: what goes out instead
    seen: list = attrs.field(factory=list)  # (from, to, message, body)

    def latency(self):
        return self.delay + self.jitter * self.random.random()

    def cut(self, one, other):
        return frozenset((one, other)) in self.cuts

    def add(self, name):
        node = self.nodes[PeerId(name)] = MemoryNode(self, PeerId(name))
        self.tell()
        return node

    def connect(self, node, other):
        """Open a link; each side has an end of its own."""
        link, twin = MemoryLink(self, node.peer, other.peer), MemoryLink(self, other.peer, node.peer)
        link.twin, twin.twin = twin, link
        self.nursery.start_soon(link.carry)
        self.nursery.start_soon(twin.carry)
        other.links.setdefault(f"from {node.peer} {id(link)}", twin)
        return link

    def kill(self, peer):
        """The process is gone: its links end at once."""
        node = self.nodes.pop(PeerId(peer))
        for other in [node, *self.nodes.values()]:
            for link in other.links.values():
                if isinstance(link, MemoryLink) and peer in (link.own, link.peer):
                    link.close()
        self.tell()

    def freeze(self, peer):
        """The process stands still; its links stay open and nothing comes out of them."""
        self.nodes[PeerId(peer)].frozen = True

    def thaw(self, peer):
        """The process goes on, and takes what has come meanwhile."""
        node = self.nodes[PeerId(peer)]
        node.frozen = False
        node.thawed.set()
        node.thawed = trio.Event()

    def part(self, one, other):
        """The link between two is cut."""
        self.cuts.add(frozenset((one, other)))
        for node in self.nodes.values():
            for link in node.links.values():
                if isinstance(link, MemoryLink) and {link.own, link.peer} == {one, other}:
                    link.close()
        self.tell()

    def heal(self):
        self.cuts.clear()
        self.tell()

    def tell(self):
        for node in self.nodes.values():
            node.changed.set(node.changed.value + 1)


@asynccontextmanager
async def open_network(**options):
    async with trio.open_nursery() as nursery:
        yield MemoryNetwork(nursery, **options)
        nursery.cancel_scope.cancel()
