"""A day in the life of a mesh's shards: the real placement code, made-up members who come and go, no network.

    python -m simulation.placement --seeds 20

A person adds each model on one node; from then on its parts come from members that are up and have them, and from nowhere else.
What is asked for rises and falls by the hour; what members say of themselves reaches the others up to half a minute later, and one
word in ten is lost until the next. Who lets a part go asks its other holders first, and is told the truth.
Prints for each seed how much of the time every wanted model could be served, what was moved, and what somebody who knows the
future would have had to move to keep as many copies; exits with 1 when a goal is missed.
"""

import argparse
import heapq
import itertools
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from random import Random

import attrs

from meshnode.placement.decisions import decide
from meshnode.placement.models import ModelFacts
from meshnode.placement.recollection import Recollection
from meshnode.placement.view import MemberView, MeshState
from simulation.clairvoyant import least_moved

__all__ = ["Report", "World", "play"]

HOUR = 3600.0
GB = 1 << 30
TICK = 300.0  # seconds between two decisions of one node
LINK = 60e6  # bytes per second that a node fetches with
SOON = HOUR  # what is fetched by anybody so soon after somebody has let it go has moved in vain
SERVED, RATIO, VAIN = 0.999, 2.0, 0.01  # the goals
LOST, RENEWED = 0.1, 600.0  # of what a member says, and seconds until it says it again
MEMORY = [(8, 30), (16, 35), (32, 20), (64, 10), (128, 5)]  # GiB of a node, and how many of a hundred have it


@attrs.frozen
class World:
    """How large, and how restless."""

    nodes: int = 500
    models: int = 40
    hours: float = 24.0
    leaving: float = 0.10  # of the members per hour
    wave: float = 0.9  # of what is asked for of a model in a day, how far it may rise and fall
    late: float = 30.0  # seconds at most until others hear of a change


@attrs.frozen
class Word:
    """What a member says of itself; one that is down says nothing."""

    up: bool = False
    held: frozenset = frozenset()
    fetching: frozenset = frozenset()
    there: frozenset = attrs.field(init=False, eq=False)  # it has it, or is fetching it

    @there.default
    def _there(self):
        return self.held | self.fetching if self.up else frozenset()


@attrs.define(eq=False)
class Node:
    """A machine, up or down; what it holds stays on its disk."""

    peer: str
    budget: int
    stays: float  # mean seconds up at a time
    away: float  # mean seconds down at a time
    speed: float = 1.0
    up: bool = True
    since: float = 0.0
    until: float = 0.0
    held: set = attrs.field(factory=set)
    fetching: dict = attrs.field(factory=dict)  # segment -> when it is there
    pinned: set = attrs.field(factory=set)  # what a person has added here and wants to keep
    recollection: Recollection = attrs.field(factory=Recollection)
    said: Word = Word()  # what others have heard of it last
    heard: int = -1  # the number of that word, of all words of everybody
    told: int = -1  # the number of its last one

    def word(self):
        return Word(self.up, frozenset(self.held), frozenset(self.fetching))


@attrs.frozen
class Report:
    """What came of one seed."""

    seed: int
    served: float  # share of the time, the worst of the wanted models that fit
    mean_served: float
    moved: int  # bytes, the first filling among them
    least: int  # that somebody who knows the future would have moved
    returns: int  # segments that a node fetched again after letting them go
    dropped: int
    fetched: int
    regained: int  # of these, what somebody else had let go shortly before: two members that leave at once may do that

    @property
    def ratio(self):
        return self.moved / self.least

    def row(self):
        return {
            "seed": self.seed,
            "worst_served_percent": round(100 * self.served, 3),
            "mean_served_percent": round(100 * self.mean_served, 4),
            "moved_gb": round(self.moved / GB),
            "least_gb": round(self.least / GB),
            "ratio": round(self.ratio, 2),
            "dropped": self.dropped,
            "fetched_again": self.returns,
            "fetched": self.fetched,
            "regained": self.regained,
        }

    def missed(self):
        """Return the goals that were missed."""
        goals = {
            f"a wanted model was served {self.served:.4%} of the time; the goal is {SERVED:.1%}": self.served >= SERVED,
            f"{self.ratio:.2f} times the least was moved; the goal is {RATIO}": self.ratio <= RATIO,
            f"{self.returns} segments were fetched again by who had let them go": self.returns == 0,
            f"{self.regained} of {self.fetched} segments were fetched within an hour of being let go": (
                self.regained <= VAIN * self.fetched
            ),
        }
        return [f"seed {self.seed}: {what}" for what, is_met in goals.items() if not is_met]


def make_nodes(world, rng):
    """Three kinds: machines that stay for days, machines of working hours, and guests; together they leave at the given rate."""
    kinds = [(0.55, 40 * HOUR, 1.0 * HOUR), (0.30, 8 * HOUR, 3 * HOUR), (0.15, 1.25 * HOUR, 4 * HOUR)]
    rate = sum(share * HOUR / stays * stays / (stays + away) for share, stays, away in kinds)
    up = sum(share * stays / (stays + away) for share, stays, away in kinds)
    stretch = rate / up / world.leaving
    nodes = []
    for number in range(world.nodes):
        _, stays, away = rng.choices(kinds, [kind[0] for kind in kinds])[0]
        gib = rng.choices([size for size, _ in MEMORY], [share for _, share in MEMORY])[0]
        speed = min(2.0, max(0.5, rng.lognormvariate(0, 0.5)))
        node = Node(f"n{number:03}", int(gib * GB * 0.8), stays * stretch, away, speed)
        node.up = rng.random() < node.stays / (node.stays + node.away)
        node.since = -rng.expovariate(1 / node.stays)
        node.until = rng.expovariate(1 / (node.stays if node.up else node.away))
        nodes.append(node)
    return nodes


def make_models(world, rng):
    models = {}
    for number in range(world.models):
        blocks = rng.choice([16, 24, 28, 32, 40, 48, 64, 80])
        gib = min(45.0, max(0.6, blocks / 32 * rng.lognormvariate(1.4, 0.6)))
        demand = rng.choice([0, 1, 3, 10, 30, 100])
        name = f"m{number:02}"
        models[name] = ModelFacts(name, blocks, int(gib * GB / blocks), demand, is_pinned=rng.random() < 0.2)
    return models


@attrs.define(eq=False, slots=False)
class Day:
    """One run."""

    world: World
    seed: int
    now: float = 0.0
    moved: int = 0
    returns: int = 0
    dropped: int = 0
    fetched: int = 0
    regained: int = 0
    warm: float = 2 * HOUR  # the mesh is filled then, which counts for what is moved, and not for what is served
    _events: list = attrs.field(factory=list)
    _count: object = attrs.field(factory=itertools.count)
    _state: object = None

    def __attrs_post_init__(self):
        self.rng = Random(self.seed)
        self.gossip = Random(f"gossip {self.seed}")
        self.nodes = {node.peer: node for node in make_nodes(self.world, self.rng)}
        self.models = make_models(self.world, self.rng)
        self.usual = dict(self.models)
        self.waves = {name: (self.world.wave * self.gossip.random(), self.gossip.random()) for name in self.models}
        self.needs = {name: [] for name in self.models}  # from when on how many copies there have to be
        self.let_go = {}  # segment -> who has let it go, and when
        self.views = {}
        self.free = {node.peer: node.budget for node in self.nodes.values()}
        self.holders = {segment: [] for facts in self.models.values() for segment in facts.segments()}
        self.copies = {segment: 0 for facts in self.models.values() for segment in facts.segments()}
        self.down_since = dict.fromkeys(self.models, 0.0)
        self.down = dict.fromkeys(self.models, 0.0)
        self.missing = {name: facts.segment_count for name, facts in self.models.items()}
        self.spans = {peer: [] for peer in self.nodes}
        for node in self.nodes.values():
            self.at(node.until, self.turn, node)
            self.at(self.rng.random() * TICK, self.tick, node)
        for node in self.nodes.values():
            self.hear(node, node.told, node.word())
        for facts in self.models.values():
            self.add(facts)
        self.ask()

    def add(self, facts):
        """A person adds a model, whole, on a machine with room for it that is up and is often so."""
        fitting = [node for node in self.nodes.values() if node.up and self.free[node.peer] >= facts.nbytes]
        node = max(fitting, key=lambda each: (each.stays, each.peer))
        for segment in facts.segments():
            node.held.add(segment)
            self.count(segment, 1)
        self.hear(node, node.told, node.word())
        if facts.is_pinned:
            node.pinned.update(facts.segments())
        self.moved += facts.nbytes

    def at(self, when, function, *args):
        heapq.heappush(self._events, (when, next(self._count), function, args))

    def run(self):
        """Play."""
        end = self.world.hours * HOUR + self.warm
        while self._events and self._events[0][0] <= end:
            self.now, _, function, args = heapq.heappop(self._events)
            function(*args)
        self.now = end
        wanted = list(self.state().targets)
        for name in list(self.down_since):
            self.mark(name)
        served = [1 - self.down[name] / (end - self.warm) for name in wanted]
        return Report(
            self.seed,
            min(served),
            sum(served) / len(served),
            self.moved,
            least_moved(self, self.needs, end),
            self.returns,
            self.dropped,
            self.fetched,
            self.regained,
        )

    # What happens

    def turn(self, node):
        """A node goes, or comes back with what is on its disk."""
        node.up = not node.up
        node.fetching.clear()
        for segment in node.held:
            self.count(segment, 1 if node.up else -1)
        self.spans[node.peer].append(self.now)
        node.since = self.now
        self.tell(node)
        node.until = self.now + self.rng.expovariate(1 / (node.stays if node.up else node.away))
        self.at(node.until, self.turn, node)

    def ask(self):
        """What is asked for changes by the hour, with a wave for each model that takes a day."""
        self.at(self.now + HOUR, self.ask)
        for name, (height, phase) in self.waves.items():
            rise = 1 + height * math.sin(2 * math.pi * (self.now / (24 * HOUR) + phase))
            self.models[name] = attrs.evolve(self.usual[name], demand=self.usual[name].demand * rise)
        self._state = None
        targets = self.state().targets
        for name, needed in self.needs.items():
            needed.append((self.now, targets[name].low if name in targets else 0))

    def tick(self, node):
        self.at(self.now + TICK * self.rng.uniform(0.9, 1.1), self.tick, node)
        if not node.up:
            return
        self.views.pop(node.peer, None)  # it has been up for longer
        state, known = self.seen_by(node), node.recollection
        known.look(state, self.now)
        can_fetch, waited = (partial(function, now=self.now) for function in (known.can_fetch, known.waited))
        limit = max(0, 2 - len(node.fetching))
        decision = decide(state, node.peer, kept=node.pinned, limit=limit, can_fetch=can_fetch, waited=waited)
        has_gone = False
        for segment in decision.drop:
            others = sum(self.keeps(peer, segment) for peer in state.arrived(segment) if peer != node.peer)
            if others < state.least(segment.model):
                continue
            node.held.discard(segment)
            self.count(segment, -1)
            self.let_go.setdefault(segment, {})[node.peer] = self.now
            known.note_let_go(segment, self.now)
            self.dropped += 1
            has_gone = True
        for segment in decision.acquire:
            nbytes = self.models[segment.model].segment_bytes(segment.index)
            self.moved += nbytes
            self.fetched += 1
            gone = self.let_go.get(segment, {})
            self.returns += node.peer in gone
            self.regained += any(self.now - at < SOON for at in gone.values())
            there = max([self.now, *node.fetching.values()]) + nbytes / LINK
            node.fetching[segment] = there
            self.at(there, self.arrive, node, segment, there)
        if decision.acquire or has_gone:
            self.tell(node)

    def arrive(self, node, segment, there):
        if node.fetching.get(segment) == there:
            del node.fetching[segment]
            if self.copies[segment]:
                node.held.add(segment)
                self.count(segment, 1)
            else:  # everybody who had it has gone
                node.recollection.note_failed(segment, self.now)
            self.tell(node)

    # What is known

    def state(self):
        """Return what members have heard of each other; what one word changes is changed, and not computed anew."""
        if self._state is None:
            members = {node.peer: self.view(node) for node in self.nodes.values() if node.said.up}
            self._state = MeshState(members, self.models)
            self._state.__dict__.update(holders=self.holders, free=self.free, loose_copies={})
        return self._state

    def view(self, node):
        if node.peer not in self.views:
            self.views[node.peer] = self.view_of(node, node.said)
        return self.views[node.peer]

    def view_of(self, node, word):
        claimed, uptime = word.fetching, self.now - node.since
        return MemberView(node.peer, node.budget, word.held | claimed, claimed, uptime, speed=node.speed)

    def seen_by(self, node):
        """Return what one member knows: of itself how it is now, of the others what has been heard."""
        state, said = self.state(), node.said
        if node.heard == node.told:
            return state
        word = node.word()
        seen = MeshState({**state.members, node.peer: self.view_of(node, word)}, self.models)
        holders = dict(state.holders)
        for segment in word.there - said.there:
            holders[segment] = [*holders[segment], node.peer]
        for segment in said.there - word.there:
            holders[segment] = [peer for peer in holders[segment] if peer != node.peer]
        seen.__dict__.update(holders=holders, free={**state.free, node.peer: self.left(node, word)}, loose_copies={})
        return seen

    def left(self, node, word):
        return node.budget - sum(self.models[each.model].segment_bytes(each.index) for each in word.there)

    def tell(self, node):
        """Have others hear how a node is now: soon, or if that is lost with its next word, after ten minutes at the latest."""
        delay = self.gossip.random() * self.world.late
        if delay and node.up and self.gossip.random() < LOST:  # who goes is missed in any case
            delay = RENEWED
        node.told, word = next(self._count), node.word()
        if delay:
            self.at(self.now + delay, self.hear, node, node.told, word)
        else:
            self.hear(node, node.told, word)

    def hear(self, node, number, word):
        if number < node.heard:
            return  # something newer has come before
        before, node.said, node.heard = node.said, word, number
        for segment in before.there - word.there:
            self.holders[segment].remove(node.peer)
        for segment in word.there - before.there:
            self.holders[segment].append(node.peer)
        self.free[node.peer] = self.left(node, word)
        self.views.pop(node.peer, None)
        self._state = None

    def keeps(self, peer, segment):
        """What a member answers who is asked whether it keeps a segment."""
        return self.nodes[peer].up and segment in self.nodes[peer].held

    # What is measured

    def count(self, segment, change):
        name, before = segment.model, self.copies[segment]
        self.copies[segment] = before + change
        if before == 0:
            self.missing[name] -= 1
            if self.missing[name] == 0:
                self.mark(name)
        elif before + change == 0:
            self.missing[name] += 1
            self.down_since.setdefault(name, self.now)

    def mark(self, name):
        since = max(self.down_since.pop(name, self.now), self.warm)
        self.down[name] += max(0.0, self.now - since)


def play(seed, world=None):
    """Play one seed and return its Report."""
    return Day(world or World(), seed).run()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="seeds played at a time")
    options = parser.parse_args()
    world = World(nodes=options.nodes, models=options.models, hours=options.hours)
    seeds = [options.seed] if options.seed is not None else range(options.seeds)
    if not options.json:
        print(
            f"{'seed':>5} {'worst':>9} {'mean':>9} {'moved':>9} {'least':>9} {'ratio':>6} {'dropped':>8} {'again':>6} {'soon':>6}"
        )
    missed = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for report in pool.map(partial(play, world=world), seeds):
            missed += report.missed()
            if options.json:
                print(json.dumps(report.row()), flush=True)
            else:
                print(
                    f"{report.seed:>5} {report.served:>9.4%} {report.mean_served:>9.4%} {report.moved / GB:>6.0f} GB "
                    f"{report.least / GB:>6.0f} GB {report.ratio:>6.2f} {report.dropped:>8} {report.returns:>6} "
                    f"{report.regained:>6}",
                    flush=True,
                )
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
