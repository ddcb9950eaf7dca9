"""Which chunks to fetch from whom: pure bookkeeping of one transfer.

The shard that the fewest hold comes first, and in it the first gap; runs are short, so that the last ones do not wait for one
slow peer. Every chunk is asked of one peer at a time, until nothing else is left to ask for: then a second one may race for it.
"""

from collections.abc import Callable, Collection, Mapping, Set
from math import inf

import attrs

from meshnode.types.ids import PeerId, ShardId
from meshnode.types.manifest import ShardDescriptor

__all__ = ["ChunkPlan", "HeldOf", "Run"]

_RUN = 8  # chunks

HeldOf = Callable[[ShardId], Collection[int]]
"""Says which chunks of a shard are there."""


@attrs.frozen
class Run:
    """Consecutive chunks of a shard."""

    shard: ShardId
    first: int
    count: int

    @property
    def chunks(self) -> range:
        """The numbers of its chunks."""
        return range(self.first, self.first + self.count)


@attrs.define(eq=False)
class ChunkPlan:
    """What is left of a transfer. `missing` has, by shard, the numbers of chunks that nobody is asked for.

    Who holds what may change at any time.
    """

    holders: dict[ShardId, frozenset[PeerId]]
    missing: dict[ShardId, set[int]]
    run: int = _RUN

    @classmethod
    def of(
        cls, holders: Mapping[ShardId, frozenset[PeerId]], wanted: Mapping[ShardDescriptor, set[int]]
    ) -> "ChunkPlan":
        """Make the plan for these shards, of which the given chunks are there already."""
        missing = {shard.id: set(range(len(shard.chunks))) - held for shard, held in wanted.items()}
        return cls(dict(holders), missing)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be asked for; what is under way may come back."""
        return not any(self.missing.values())

    def next(self, peer: PeerId) -> Run | None:
        """Take the next run that `peer` can give, None if there is none at the moment."""
        mine = self._open_to(peer)
        if not mine:
            return None
        shard = min(mine, key=lambda each: len(self.holders[each]))  # of equally rare ones the first in the model
        left = self.missing[shard]
        first = min(left)
        count = 1
        while count < self.run and first + count in left:
            count += 1
        taken = Run(shard, first, count)
        left.difference_update(taken.chunks)
        return taken

    def rarity(self, peer: PeerId) -> float:
        """Return how many hold the rarest shard that `peer` can be asked for at the moment, infinity for none."""
        return min((len(self.holders[shard]) for shard in self._open_to(peer)), default=inf)

    def is_outranked(self, peer: PeerId, waiting: Set[PeerId]) -> bool:
        """Whether one of those who wait can be asked for a shard that is rarer than any of `peer`'s."""
        bound = self.rarity(peer)
        rarer = (
            self.holders[shard] for shard, left in self.missing.items() if left and len(self.holders[shard]) < bound
        )
        return not all(map(waiting.isdisjoint, rarer))

    def _open_to(self, peer: PeerId) -> list[ShardId]:
        return [shard for shard, left in self.missing.items() if left and peer in self.holders[shard]]

    def race(self, peer: PeerId, slow: Collection[Run], brisk: Collection[Run], held: HeldOf) -> Run | None:
        """Return one chunk of a `slow` run that `peer` can give too and that no `brisk` one will bring, None if there is none.

        It is the last that lacks, as whoever is asked for the run comes from the other end: where they meet, and there alone,
        bytes come twice.
        """
        coming = {(run.shard, number) for run in brisk for number in run.chunks}
        for run in slow:
            for number in reversed(run.chunks) if peer in self.holders[run.shard] else ():
                if number not in held(run.shard) and (run.shard, number) not in coming:
                    return Run(run.shard, number, 1)
        return None

    def give_back(self, run: Run, held: set[int], under_way: Collection[Run] = ()) -> None:
        """Put back what a run has not brought, except what another that is under way may still bring."""
        left = set(run.chunks) - held
        self.missing[run.shard].update(left.difference(*(each.chunks for each in under_way if each.shard == run.shard)))
