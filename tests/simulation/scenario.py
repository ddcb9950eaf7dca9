"""Two minutes of a mesh in trouble, made from a seed, and what must hold however they go."""

import itertools
import os
from pathlib import Path
from random import Random

import attrs
import trio
from support.tiny_gguf import write_tiny_llama
from support.toy_executor import WIDTH

from meshnode.files.importing import import_gguf
from simulation.clock import JumpingClock
from simulation.faults import Faults
from simulation.forks import Forks
from simulation.users import Users
from simulation.watch import GONE, Broken, Undead, held, owners_watched, strangers
from simulation.world import SimWorld

__all__ = ["Outcome", "Result", "play", "play_forks", "toy_model"]

BLOCKS = 6
CONVERGED = 60.0  # seconds after the last fault in which all are linked with all: the longest pause of a dialler
FREED = 25.0  # seconds after the last request in which nothing is held: links to who is gone end
LEFT = 1.0  # seconds after a client has left in which nothing is held, where nothing else is wrong
LARGE = 20  # nodes from which on a seed is kept short: a second of fifty takes as long as thirty seconds of a few


@attrs.frozen
class Pace:
    """How much happens, and how fast."""

    trouble: float  # seconds in which things begin to go wrong
    faults: int  # at most
    requests: float  # per second
    long: float  # of what goes wrong stays so until others know
    leaving: float  # of the seeds end with a node that goes for good


PACE = Pace(trouble=5.0, faults=3, requests=0.7, long=0.2, leaving=0.15)
LARGE_PACE = Pace(trouble=3.0, faults=8, requests=1.2, long=0.012, leaving=0.04)


@attrs.define
class Outcome:
    """What happened."""

    requests: int = 0
    answered: int = 0
    refused: int = 0
    faults: int = 0
    trace: list = attrs.field(factory=list)


@attrs.frozen
class Result:
    """Of a seed, for those in other processes."""

    seed: int
    outcome: Outcome
    wrong: tuple = ()  # lines; none where all is well


def said(error):
    """Return the first errors of a tree of groups, a line each."""
    if isinstance(error, BaseExceptionGroup):
        return tuple(line for child in error.exceptions for line in said(child))[:3]
    return (f"{type(error).__name__}: {error}",)


def toy_model(folder: Path):
    """Return a manifest whose rows are as wide as the toy executor's."""
    manifest = import_gguf(write_tiny_llama(folder / "toy.gguf", blocks=BLOCKS), folder)
    return attrs.evolve(manifest, config=attrs.evolve(manifest.config, hidden_size=WIDTH // 2))


def play(seed: int, size: int | None, model) -> Result:
    """Run one seed from beginning to end."""
    outcome = Outcome()
    try:
        with owners_watched():
            trio.run(_play, seed, size, *model, outcome, clock=JumpingClock())
    except BaseException as error:
        return Result(seed, outcome, said(error))
    return Result(seed, outcome)


def play_forks(mesh: int, size: int, model, forks: Forks, begin) -> None:
    """Link a mesh, made from the seed `mesh`, and run the seeds that go on from there; each result is reported.

    `begin` is called with the seed in its process, which ends with it.
    """
    outcome = Outcome()
    try:
        with owners_watched():
            trio.run(_play_forks, mesh, size, model, outcome, forks, begin, clock=JumpingClock())
    except BaseException as error:
        for seed in forks.touched():
            forks.report(Result(seed, outcome, said(error)))


async def _play(seed, size, folder, manifest, outcome):
    random = Random(seed)
    async with trio.open_nursery() as nursery:
        world = await _linked(nursery, random, size or random.choice([4, 4, 4, 5, 5, 6]), manifest, folder)
        await _story(world, nursery, outcome)
        nursery.cancel_scope.cancel()


async def _play_forks(mesh, size, model, outcome, forks, begin):
    random = Random(f"mesh {mesh}")
    folder, manifest = model
    async with trio.open_nursery() as nursery:
        world = await _linked(nursery, random, size, manifest, folder)
        seed = forks.begin_each()
        if seed is not None:
            begin(seed)
            random.seed(seed)
            await _story(world, nursery, outcome)
            await trio.lowlevel.checkpoint()  # what has failed meanwhile is told here
            forks.report(Result(seed, outcome))
        os._exit(0)  # fifty nodes take a second to end, which is nothing that a seed decides


async def _linked(nursery, random, size, manifest, folder):
    """Return a mesh in which all are linked with all."""
    world = SimWorld(nursery, random, manifest, folder)
    for index in range(size):
        world.add(_blocks(index, random))
    world.bootstrap = tuple(node.peer for node in world.nodes[:2])
    for node in world.nodes:
        await node.start()
    await _within(CONVERGED, lambda: strangers(world.nodes))
    return world


async def _story(world, nursery, outcome):
    """Have things go wrong, and look whether they are right again."""
    random = world.random
    pace = LARGE_PACE if len(world.nodes) >= LARGE else PACE
    faults = Faults(world, random, outcome.trace, pace.long)
    users = Users(faults)
    nursery.start_soon(Undead(world.nodes).run)
    async with trio.open_nursery() as trouble:
        trouble.start_soon(users.ask_until, trio.current_time() + pace.trouble, pace.requests)
        for _ in range(random.randint(1, pace.faults)):
            trouble.start_soon(faults.one, pace.trouble)
    faults.note("calm")
    await _within(FREED, lambda: held(world.nodes))
    await _within(CONVERGED, lambda: strangers(world.nodes))
    faults.note("all are linked")
    await _peace(world, users, faults)
    if random.random() < pace.leaving:  # it takes long
        await _departure(world, faults)
    outcome.requests, outcome.answered, outcome.refused = users.requests, users.answered, users.refused
    outcome.faults = faults.count


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
    while next(iter(what_is_wrong()), None) is not None:
        if trio.current_time() >= until:
            raise Broken(f"after {limit:.0f} s: {', '.join(itertools.islice(what_is_wrong(), 5))}")
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
