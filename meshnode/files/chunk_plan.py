"""Which chunks to fetch from whom: pure bookkeeping of one transfer.

The shard that the fewest hold comes first, and in it the first gap; runs are short, so that the last ones do not wait for one
slow peer. Every chunk is asked of one peer at a time.
"""

from collections.abc import Mapping

import attrs

from meshnode.types.ids import PeerId, ShardId
from meshnode.types.manifest import ShardDescriptor

__all__ = ["ChunkPlan", "Run"]

_RUN = 8  # chunks


@attrs.frozen
class Run:
    """Consecutive chunks of a shard."""

    shard: ShardId
    first: int
    count: int


@attrs.define(eq=False)
class ChunkPlan:
    """What is left of a transfer. `missing` has, by shard, the numbers of chunks that nobody is asked for."""

    holders: Mapping[ShardId, frozenset[PeerId]]
    missing: dict[ShardId, set[int]]
    run: int = _RUN

    @classmethod
    def of(
        cls, holders: Mapping[ShardId, frozenset[PeerId]], wanted: Mapping[ShardDescriptor, set[int]]
    ) -> "ChunkPlan":
        """Make the plan for these shards, of which the given chunks are there already."""
        missing = {shard.id: set(range(len(shard.chunks))) - held for shard, held in wanted.items()}
        return cls(holders, missing)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be asked for; what is under way may come back."""
        return not any(self.missing.values())

    def next(self, peer: PeerId) -> Run | None:
        """Take the next run that `peer` can give, None if there is none at the moment."""
        mine = [shard for shard, left in self.missing.items() if left and peer in self.holders[shard]]
        if not mine:
            return None
        shard = min(mine, key=lambda each: len(self.holders[each]))  # of equally rare ones the first in the model
        left = self.missing[shard]
        first = min(left)
        count = 1
        while count < self.run and first + count in left:
            count += 1
        left.difference_update(range(first, first + count))
        return Run(shard, first, count)

    def give_back(self, run: Run, held: set[int]) -> None:
        """Put back what a run has not brought."""
        self.missing[run.shard].update(set(range(run.first, run.first + run.count)) - held)
