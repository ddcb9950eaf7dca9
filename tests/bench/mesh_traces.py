"""What traced nodes wrote down, and what follows from it. Times are those of time.monotonic(), the same for all processes."""

import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path

import attrs


@attrs.frozen
class Computed:
    """One computation of a worker."""

    process: int
    began: float
    ended: float
    position: int  # of its first row
    rows: int


@attrs.frozen
class Traces:
    """All events between two moments."""

    computed: tuple[Computed, ...]  # in order of their beginning
    opened: tuple[float, ...]  # streams and links
    freed: dict[int, list[tuple[float, int]]]  # by process: when, and how many bytes of KV it held then

    @classmethod
    def read(cls, folder: Path, since: float, until: float) -> "Traces":
        computed: list[Computed] = []
        opened: list[float] = []
        freed: dict[int, list[tuple[float, int]]] = {}
        for file in folder.iterdir():
            process = int(file.name)
            for line in file.read_text().splitlines():
                kind, first, *rest = line.split()
                if not since <= float(first) <= until:
                    continue
                if kind == "computed":
                    computed.append(Computed(process, float(first), float(rest[0]), int(rest[1]), int(rest[2])))
                elif kind == "opened" and "/dht/" not in line:  # which looks around every ten minutes
                    opened.append(float(first))
                elif kind == "freed":
                    freed.setdefault(process, []).append((float(first), int(rest[0])))
        return cls(tuple(sorted(computed, key=lambda each: each.began)), tuple(opened), freed)

    def borders(self) -> tuple[list[float], list[float]]:
        """Return the seconds from the end of a stage's work on a token to the beginning of the next one's.

        First those between two stages, then those from the last to the first: the token is chosen and told, and comes back.
        """
        forward, closing = [], []
        decoding = [each for each in self.computed if each.rows == 1]
        for before, after in itertools.pairwise(decoding):
            if before.process != after.process and after.position in (before.position, before.position + 1):
                gaps = forward if after.position == before.position else closing
                gaps.append(after.began - before.ended)
        return forward, closing

    def compute_per_token(self) -> float:
        """Return the seconds that all stages together computed for one token."""
        by_position: dict[int, float] = {}
        for each in self.computed:
            if each.rows == 1:
                by_position[each.position] = by_position.get(each.position, 0.0) + each.ended - each.began
        return statistics.median(list(by_position.values())[1:])

    def overlap(self) -> float:
        """Return how many stages computed at once, on average over the time in which one did, while reading a prompt."""
        reading = [each for each in self.computed if each.rows > 1]
        work = sum(each.ended - each.began for each in reading)
        return work / (max(each.ended for each in reading) - min(each.began for each in reading))


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the value that `percent` of all are not above: the nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
