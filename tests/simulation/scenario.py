"""A minute of a mesh in trouble, made from a seed, and what must hold however they go."""

import tempfile
from pathlib import Path
from random import Random

import attrs
import trio
import trio.testing
from support.tiny_gguf import write_tiny_llama
from support.toy_executor import WIDTH

from meshnode.errors import MeshnodeError
from meshnode.files.importing import import_gguf
from simulation.world import SimWorld, ask, request, text_of

__all__ = ["Broken", "Outcome", "play", "toy_model"]

BLOCKS = 6
TROUBLE = 12.0  # seconds in which things begin to go wrong
LONGEST = 7.0  # seconds that a partition or a freeze lasts
CALM = 13.0  # seconds after which everybody knows of everybody: a dialler's pause after such a partition, and some
PATIENCE = 330.0  # seconds in which a request ends, one way or the other
GONE = 22.0  # seconds after which a node that is silent is known to be gone: three heartbeats, and a lost packet
WATCHED = 10.0  # seconds in which it must not come back


class Broken(AssertionError):
    """An invariant does not hold."""


@attrs.define
class Outcome:
    """What happened."""

    requests: int = 0
    answered: int = 0
    refused: int = 0
    faults: int = 0
    trace: list = attrs.field(factory=list)


def toy_model(folder: Path):
    """Return a manifest whose rows are as wide as the toy executor's."""
    manifest = import_gguf(write_tiny_llama(folder / "toy.gguf", blocks=BLOCKS), folder)
    return attrs.evolve(manifest, config=attrs.evolve(manifest.config, hidden_size=WIDTH // 2))


def play(seed: int, size: int | None = None, model=None) -> Outcome:
    """Run one seed from beginning to end. Raises Broken."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, manifest = model or (Path(scratch), None)
        manifest = manifest or toy_model(folder)
        outcome = Outcome()
        try:
            trio.run(_play, seed, size, manifest, folder, outcome, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseException as error:
            error.add_note("\n".join(outcome.trace))
            raise
        return outcome


async def _play(seed, size, manifest, folder, outcome):
    random = Random(seed)
    size = size or random.randint(4, 7)
    async with trio.open_nursery() as nursery:
        world = SimWorld(nursery, random, manifest, folder)
        for index in range(size):
            world.add(_blocks(index, size, random))
        world.bootstrap = tuple(node.peer for node in world.nodes[:2])
        for node in world.nodes:
            await node.start()
        story = _Story(world, random, outcome)
        await trio.sleep(3)
        async with trio.open_nursery() as trouble:
            trouble.start_soon(story.users)
            for _ in range(random.randint(1, 3 + size // 6)):
                trouble.start_soon(story.fault)
        await story.calm()
        nursery.cancel_scope.cancel()


def _blocks(index, size, random):
    """Every block is on two nodes at least; some nodes hold nothing."""
    cut = BLOCKS // 2
    fixed = [range(cut), range(cut, BLOCKS), range(cut), range(cut, BLOCKS)]
    if index < len(fixed):
        return fixed[index]
    if random.random() < 0.2:
        return range(0)
    begin = random.randrange(BLOCKS)
    return range(begin, random.randint(begin + 1, BLOCKS))


@attrs.define(eq=False)
class _Story:
    world: SimWorld
    random: Random
    outcome: Outcome
    open: int = 0
    lost: dict = attrs.field(factory=dict)  # peer -> when it was last seen to be gone for good

    def note(self, what):
        self.outcome.trace.append(f"{trio.current_time():9.3f} {what}")

    def up(self):
        return [node for node in self.world.nodes if node.is_up]

    # Users

    async def users(self):
        """Ask all the time, whoever is up."""
        async with trio.open_nursery() as nursery:
            until = trio.current_time() + TROUBLE
            while trio.current_time() < until:
                await trio.sleep(self.random.expovariate(0.5))
                if self.up():
                    nursery.start_soon(self.user, self.random.choice(self.up()))

    async def user(self, node, *, must=False):
        """Ask one node one thing; it ends, and what is answered is right."""
        asked = request(self.random, self.world.manifest.name, self.random.randint(5, 60))
        number = self.outcome.requests = self.outcome.requests + 1
        process = node.scope
        self.note(f"request {number} to {node.peer[-6:]}")
        error = answer = None
        with trio.move_on_after(PATIENCE) as patience:
            try:
                answer = await ask(node, asked)
            except MeshnodeError as caught:
                error = caught
        if node.scope is not process:
            self.note(f"request {number}: its node is gone")
            return
        if patience.cancelled_caught:
            raise Broken(f"request {number} has not ended after {PATIENCE} s")
        if error is not None:
            self.outcome.refused += 1
            self.note(f"request {number} refused: {error.code}")
            if must:
                raise Broken(f"request {number} was refused while nothing was wrong: {error}") from error
            return
        self.outcome.answered += 1
        if answer != await text_of(asked, self.world.manifest, self.world.folder):
            right = await text_of(asked, self.world.manifest, self.world.folder)
            raise Broken(f"request {number} got a wrong answer: {answer!r} instead of {right!r}")
        self.note(f"request {number} answered")

    # Troubles

    async def fault(self):
        """One thing that goes wrong, and perhaps right again."""
        await trio.sleep(self.random.uniform(0, TROUBLE))
        self.outcome.faults += 1
        await self.random.choice([self.crash, self.crash, self.partition, self.freeze, self.lose_worker])()

    async def crash(self):
        node = self.random.choice(self.world.nodes)
        if not node.is_up:
            return
        self.note(f"crash {node.peer[-6:]}")
        node.crash()
        await trio.sleep(self.random.uniform(0.5, LONGEST))
        self.note(f"restart {node.peer[-6:]}")
        await node.start()

    async def partition(self):
        name = object()
        peers = [node.peer for node in self.world.nodes]
        side = self.random.sample(peers, self.random.randint(1, len(peers) - 1))
        self.note(f"partition {sorted(peer[-6:] for peer in side)}")
        self.world.cut(name, side)
        await trio.sleep(self.random.uniform(1, LONGEST))
        self.world.heal(name)
        self.note("healed")

    async def freeze(self):
        name, node = object(), self.random.choice(self.world.nodes)
        self.note(f"freeze {node.peer[-6:]}")
        self.world.cut(name, [node.peer])
        await trio.sleep(self.random.uniform(0.5, LONGEST))
        self.world.heal(name)
        self.note(f"thaw {node.peer[-6:]}")

    async def lose_worker(self):
        node = self.random.choice(self.world.nodes)
        if node.is_up and node.executor is not None and node.executor.is_ready:
            self.note(f"worker of {node.peer[-6:]} crashes")
            node.executor.crash()
        await trio.lowlevel.checkpoint()

    # What must hold

    async def calm(self):
        """Nothing goes wrong any more: all find each other, all is answered, and nothing is left over."""
        await trio.sleep(CALM)
        everybody = {node.peer for node in self.world.nodes}
        for node in self.world.nodes:
            missing = everybody - {node.peer} - node.alive_peers()
            if missing:
                raise Broken(f"{node.peer[-6:]} does not know of {sorted(peer[-6:] for peer in missing)}")
        async with trio.open_nursery() as nursery:
            for node in self.random.sample(self.world.nodes, min(4, len(self.world.nodes))):
                nursery.start_soon(lambda node=node: self.user(node, must=True))
        await trio.sleep(2)
        for node in self.world.nodes:
            if node.executor is not None and node.executor.sessions:
                raise Broken(f"{node.peer[-6:]} still holds memory of {len(node.executor.sessions)} sessions")
        if self.random.random() < 0.3:  # it takes long
            await self.departure()

    async def departure(self):
        """One node goes for good: it is known to be gone, and no gossip brings it back."""
        leaver = self.random.choice(self.world.nodes)
        peer = leaver.peer
        self.note(f"{peer[-6:]} leaves for good")
        if self.random.random() < 0.5:
            leaver.crash()
        self.world.cut(object(), [peer])  # its power is cut: nothing says that it is gone
        others = [node for node in self.up() if node is not leaver]
        newcomer = self.random.choice(others)  # it hears of the one that left, from those who do not know yet
        newcomer.crash()
        await newcomer.start()
        await trio.sleep(GONE)
        until = trio.current_time() + WATCHED
        while trio.current_time() < until:
            for node in others:
                if peer in node.alive_peers():
                    raise Broken(f"{node.peer[-6:]} takes {peer[-6:]} for alive, which left for good")
            await trio.sleep(1)
