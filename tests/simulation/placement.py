"""A day in the life of a mesh's shards: the real placement code, made-up members who come and go, no network.

    python -m simulation.placement --seeds 20

A person adds each model on one node; from then on its parts come from members that are up and have them, and from nowhere else.
Prints for each seed how much of the time every wanted model could be served, what was moved, and what somebody who knows the
future would have had to move to keep as many copies; exits with 1 when a goal is missed.
"""

import argparse
import heapq
import itertools
import json
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

__all__ = ["Report", "World", "play"]

HOUR = 3600.0
GB = 1 << 30
TICK = 300.0  # seconds between two decisions of one node
LINK = 60e6  # bytes per second that a node fetches with
SOON = HOUR  # what is fetched by anybody so soon after somebody has let it go has moved in vain
SERVED, RATIO, VAIN = 0.999, 2.0, 0.01  # the goals
MEMORY = [(8, 30), (16, 35), (32, 20), (64, 10), (128, 5)]  # GiB of a node, and how many of a hundred have it


@attrs.frozen
class World:
    """How large, and how restless."""

    nodes: int = 500
    models: int = 40
    hours: float = 24.0
    leaving: float = 0.10  # of the members per hour


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
        self.nodes = {node.peer: node for node in make_nodes(self.world, self.rng)}
        self.models = make_models(self.world, self.rng)
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
        for facts in self.models.values():
            self.add(facts)

    def add(self, facts):
        """A person adds a model, whole, on a machine with room for it that is up and is often so."""
        fitting = [node for node in self.nodes.values() if node.up and self.free[node.peer] >= facts.nbytes]
        node = max(fitting, key=lambda each: (each.stays, each.peer))
        for segment in facts.segments():
            node.held.add(segment)
            self.count(segment, 1)
            self.tell(node, segment)
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
            self.clairvoyant(end),
            self.returns,
            self.dropped,
            self.fetched,
            self.regained,
        )

    # What happens

    def turn(self, node):
        """A node goes, or comes back with what is on its disk."""
        node.up = not node.up
        lost = list(node.fetching)
        node.fetching.clear()
        for segment in lost:
            self.tell(node, segment)
        self.tell(node)
        for segment in node.held:
            self.count(segment, 1 if node.up else -1)
        self.spans[node.peer].append(self.now)
        node.since = self.now
        node.until = self.now + self.rng.expovariate(1 / (node.stays if node.up else node.away))
        self.at(node.until, self.turn, node)

    def tick(self, node):
        self.at(self.now + TICK * self.rng.uniform(0.9, 1.1), self.tick, node)
        if not node.up:
            return
        self.views.pop(node.peer, None)  # it has been up for longer
        state, known = self.state(), node.recollection
        known.look(state, self.now)
        can_fetch, waited = (partial(function, now=self.now) for function in (known.can_fetch, known.waited))
        limit = max(0, 2 - len(node.fetching))
        decision = decide(state, node.peer, kept=node.pinned, limit=limit, can_fetch=can_fetch, waited=waited)
        for segment in decision.drop:
            node.held.discard(segment)
            self.count(segment, -1)
            self.let_go.setdefault(segment, {})[node.peer] = self.now
            known.note_let_go(segment, self.now)
            self.dropped += 1
            self.tell(node, segment)
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
            self.tell(node, segment)

    def arrive(self, node, segment, there):
        if node.fetching.get(segment) == there:
            del node.fetching[segment]
            if self.copies[segment]:
                node.held.add(segment)
                self.count(segment, 1)
            else:  # everybody who had it has gone
                node.recollection.note_failed(segment, self.now)
            self.tell(node, segment)

    def state(self):
        """Return what every node knows; what one step changes is changed, and not computed anew."""
        if self._state is None:
            members = {node.peer: self.view(node) for node in self.nodes.values() if node.up}
            self._state = MeshState(members, self.models)
            self._state.__dict__.update(holders=self.holders, free=self.free, loose_copies={})
        return self._state

    def view(self, node):
        if node.peer not in self.views:
            held = frozenset(node.held | node.fetching.keys())
            claimed, uptime = frozenset(node.fetching), self.now - node.since
            self.views[node.peer] = MemberView(node.peer, node.budget, held, claimed, uptime, speed=node.speed)
        return self.views[node.peer]

    def tell(self, node, segment=None):
        """Let all know that a node, or one segment of it, has changed: `held`, `fetching` and `up` are as they are now."""
        self._state = None
        self.views.pop(node.peer, None)
        held = node.held | node.fetching.keys() if node.up else set()
        for each in [segment] if segment is not None else set(self.holders) & (node.held | node.fetching.keys()):
            if each in held and node.peer not in self.holders[each]:
                self.holders[each].append(node.peer)
            elif each not in held and node.peer in self.holders[each]:
                self.holders[each].remove(node.peer)
        sizes = (self.models[each.model].segment_bytes(each.index) for each in held)
        self.free[node.peer] = node.budget - sum(sizes)

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

    def clairvoyant(self, end):
        """Bytes that who knows when everybody comes and goes moves to keep `low` copies of all segments at all times.

        Each time there are too few it takes the member with room that is there for the longest of what is left of the day.
        """
        targets = self.state().targets
        rest = {peer: _up_spans(self.nodes[peer], times, end) for peer, times in self.spans.items()}
        free = {peer: node.budget for peer, node in self.nodes.items()}
        moved = 0
        order = sorted(free, key=lambda peer: -sum(b - a for a, b in rest[peer]))
        for model in sorted(targets, key=lambda name: -self.models[name].block_bytes):
            facts = self.models[model]
            for segment in facts.segments():
                nbytes, low = facts.segment_bytes(segment.index), targets[model].low
                cover = []  # spans of the members chosen
                for peer in order:
                    if free[peer] < nbytes or not rest[peer]:
                        continue
                    if _covered(cover, low, end):
                        break
                    cover.extend(rest[peer])
                    free[peer] -= nbytes
                    moved += nbytes
        return moved


def _up_spans(node, turns, end):
    """Return when a node was up; `turns` are its changes, `node.up` is how it ended."""
    up = node.up if len(turns) % 2 == 0 else not node.up
    spans, at = [], 0.0
    for turn in [*turns, end]:
        if up:
            spans.append((at, turn))
        up, at = not up, turn
    return spans


def _covered(spans, low, end):
    """Whether at every moment at least `low` of the spans are under way."""
    changes = sorted(
        [(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans], key=lambda change: (change[0], -change[1])
    )
    depth = 0
    if not changes or changes[0][0] > 0:
        return False
    for index, (at, change) in enumerate(changes):
        depth += change
        following = changes[index + 1][0] if index + 1 < len(changes) else end
        if following > at and depth < low and at < end:
            return False
    return True


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
