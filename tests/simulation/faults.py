"""What goes wrong in a mesh, and what a request can expect meanwhile."""

import math
from random import Random

import attrs
import trio

from simulation.world import SimWorld

__all__ = ["Faults"]

SHORT, LONG = (0.3, 4.0), (16.0, 45.0)  # seconds that things stay wrong; after 15 s to 32 s all know who is gone
PARTS = ("dispatcher", "monitor", "router", "network", "network")
WORKER_CRASHES = 2  # of one node: after more of them its worker rests, as it should


@attrs.define
class _Trouble:
    """Peers that are as good as gone: for everybody, or for those who are not among them."""

    peers: frozenset
    apart: bool  # they can still reach each other
    began: float
    over: float = math.inf  # and how long it takes others to find that out


@attrs.define(eq=False)
class Faults:
    """Makes faults, and remembers them."""

    world: SimWorld
    random: Random
    trace: list
    long: float  # of what goes wrong stays so until others know
    count: int = 0
    _troubles: list = attrs.field(factory=list, init=False)
    _crashes: dict = attrs.field(factory=dict, init=False)  # of workers, by node

    def note(self, what):
        """Add a line to the trace."""
        self.trace.append(f"{trio.current_time():9.3f} {what}")

    async def one(self, within):
        """Have one thing go wrong, and right again."""
        await trio.sleep(self.random.uniform(0, within))
        kinds = [self.crash, self.crash, self.lose_power, self.partition, self.deafen, self.isolate]
        await self.random.choice([*kinds, self.lose_worker, self.lose_part, self.lose_part])()

    def had_a_route(self, asker, since):
        """Whether nodes that hold all blocks among them were there for `asker` all the time since then."""
        usable = {node.peer: node for node in self.world.nodes}
        for trouble in self._troubles:
            if trouble.over < since:
                continue
            if not trouble.apart and asker.peer in trouble.peers:
                return False
            inside = trouble.apart and asker.peer in trouble.peers
            usable = {peer: node for peer, node in usable.items() if (peer in trouble.peers) is inside}
        blocks = {block for node in usable.values() for block in node.blocks}
        return len(blocks) == self.world.manifest.config.block_count

    # Kinds

    async def crash(self):
        await self._restart("crashes", silent=False)

    async def lose_power(self):
        await self._restart("loses power", silent=True)

    async def _restart(self, what, *, silent):
        node = self._somebody()
        if node is not None:
            async with self._trouble(f"{node.peer[-6:]} {what}", [node.peer]):
                node.crash(silent=silent)
                await self._wait()
                await node.start()

    async def partition(self):
        peers = [node.peer for node in self.world.nodes]
        await self._cut("are cut off", self.random.sample(peers, self.random.randint(1, len(peers) - 1)))

    async def isolate(self):
        await self._cut("is cut off", [self.random.choice(self.world.nodes).peer])

    async def deafen(self):
        """Others hear one node no more; it hears them."""
        await self._cut("is not heard", [self.random.choice(self.world.nodes).peer], one_way=True)

    async def _cut(self, what, peers, *, one_way=False):
        name = object()
        async with self._trouble(f"{sorted(peer[-6:] for peer in peers)} {what}", peers, apart=True):
            self.world.cut(name, peers, one_way=one_way)
            await self._wait()
            self.world.heal(name)

    async def lose_worker(self):
        node = self._somebody()
        if node is None or node.executor is None or not node.executor.is_ready:
            return
        crashes = self._crashes[node.peer] = self._crashes.get(node.peer, 0) + 1
        if crashes <= WORKER_CRASHES:
            async with self._trouble(f"the worker of {node.peer[-6:]} crashes", [node.peer]):
                node.executor.crash()

    async def lose_part(self):
        node = self._somebody()
        if node is not None and len(node.parts) == 4:
            part = self.random.choice(PARTS)
            async with self._trouble(f"the {part} of {node.peer[-6:]} crashes", [node.peer]):
                node.crash_part(part)

    def _somebody(self):
        node = self.random.choice(self.world.nodes)
        return node if node.is_up else None

    async def _wait(self):
        await trio.sleep(self.random.uniform(*(SHORT if self.random.random() >= self.long else LONG)))

    def _trouble(self, what, peers, *, apart=False):
        self.count += 1
        self.note(what)
        trouble = _Trouble(frozenset(peers), apart, trio.current_time())
        self._troubles.append(trouble)
        return _Ending(self, trouble, what)


@attrs.define(eq=False)
class _Ending:
    """Notes that a trouble is over. Those who dial wait the longer the longer they have failed."""

    faults: Faults
    trouble: _Trouble
    what: str

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        now = trio.current_time()
        self.trouble.over = now + 8 + 2.5 * (now - self.trouble.began)
        self.faults.note(f"over: {self.what}")
