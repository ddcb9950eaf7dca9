"""Two minutes of a mesh in trouble, made from a seed, and what must hold however they go."""

import tempfile
from pathlib import Path
from random import Random

import attrs
import trio
from support.tiny_gguf import write_tiny_llama
from support.toy_executor import WIDTH

from meshnode.files.importing import import_gguf
from simulation.clock import JumpingClock
from simulation.faults import Faults
from simulation.users import Users
from simulation.watch import GONE, Broken, Undead, held, owners_watched, strangers
from simulation.world import SimWorld

__all__ = ["Outcome", "play", "toy_model"]

BLOCKS = 6
TROUBLE = 5.0  # seconds in which things begin to go wrong
CONVERGED = 60.0  # seconds after the last fault in which all are linked with all: the longest pause of a dialler
FREED = 25.0  # seconds after the last request in which nothing is held: links to who is gone end
LEFT = 1.0  # seconds after a client has left in which nothing is held, where nothing else is wrong
LARGE = 20  # nodes from which on a seed is kept short


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
            with owners_watched():
                trio.run(_play, seed, size, manifest, folder, outcome, clock=JumpingClock())
        except BaseException as error:
            error.add_note("\n".join(outcome.trace))
            raise
        return outcome


async def _play(seed, size, manifest, folder, outcome):
    random = Random(seed)
    size = size or random.choice([4, 4, 4, 5, 5, 6])
    async with trio.open_nursery() as nursery:
        world = SimWorld(nursery, random, manifest, folder)
        for index in range(size):
            world.add(_blocks(index, random))
        world.bootstrap = tuple(node.peer for node in world.nodes[:2])
        for node in world.nodes:
            await node.start()
        faults = Faults(world, random, outcome.trace)
        users = Users(faults)
        await _within(CONVERGED, lambda: strangers(world.nodes))
        nursery.start_soon(Undead(world.nodes).run)
        async with trio.open_nursery() as trouble:
            trouble.start_soon(users.ask_until, trio.current_time() + TROUBLE)
            for _ in range(random.randint(1, 3 if size < LARGE else 8)):
                trouble.start_soon(faults.one, TROUBLE)
        faults.note("calm")
        await _within(FREED, lambda: held(world.nodes))
        await _within(CONVERGED, lambda: strangers(world.nodes))
        faults.note("all are linked")
        await _peace(world, users, faults)
        if random.random() < 0.15:  # it takes long
            await _departure(world, faults)
        outcome.requests, outcome.answered, outcome.refused = users.requests, users.answered, users.refused
        outcome.faults = faults.count
        nursery.cancel_scope.cancel()


def _blocks(index, random):
    """Every block is on two nodes at least; some nodes hold nothing."""
    cut = BLOCKS // 2
    fixed = [range(cut), range(cut, BLOCKS), range(cut), range(cut, BLOCKS)]
    if index < len(fixed):
        return fixed[index]
    if random.random() < 0.2:
        return range(0)
    begin = random.randrange(BLOCKS)
    return range(begin, random.randint(begin + 1, BLOCKS))


async def _within(limit, what_is_wrong):
    """Wait until nothing is wrong. Raises Broken after `limit` seconds."""
    until = trio.current_time() + limit
    while wrong := what_is_wrong():
        if trio.current_time() >= until:
            raise Broken(f"after {limit:.0f} s: {', '.join(wrong[:5])}")
        await trio.sleep(0.25)


async def _peace(world, users, faults):
    """Nothing is wrong: all is answered, and nothing is left over, of those who leave neither."""
    async with trio.open_nursery() as nursery:
        for node in faults.random.sample(world.nodes, 2):
            nursery.start_soon(lambda node=node: users.ask(node, must=True))
        nursery.start_soon(users.ask, faults.random.choice(world.nodes), faults.random.uniform(0.05, 0.5))
    await _within(LEFT, lambda: held(world.nodes))


async def _departure(world, faults):
    """One node goes for good, and others start while not all have noticed; `Undead` looks on."""
    leaver, newcomer = faults.random.sample(world.nodes, 2)
    faults.note(f"{leaver.peer[-6:]} leaves for good, {newcomer.peer[-6:]} starts again")
    leaver.crash(silent=faults.random.random() < 0.7)
    await trio.sleep(faults.random.uniform(0, 12))
    newcomer.crash()
    await trio.sleep(faults.random.uniform(0.5, 5))
    await newcomer.start()
    await trio.sleep(GONE + 3)
    await _within(CONVERGED, lambda: strangers([node for node in world.nodes if node.is_up]))
