"""Where the parts of a model lie, on disks and in workers, counted over this node and its peers: pure."""

from collections.abc import Iterable, Iterator, Sequence

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ShardKind
from meshnode.types.parts import Parts
from meshnode.types.peers import Holding

__all__ = ["Copies", "Loaded", "count_copies", "only_in"]

_ENDS = (ShardKind.EMBEDDING, ShardKind.HEAD)


@attrs.frozen
class Loaded:
    """What one node has of a model in memory."""

    blocks: BlockRange
    embedding: bool
    head: bool


@attrs.frozen
class Copies:
    """How often a model is there, by its rarest part; embedding and head count as parts."""

    disks: int  # nodes that have on disk what the fewest have
    routes: int  # complete routes that share no node: nodes that have loaded what the fewest have
    unloaded: Parts  # that nobody has loaded
    nowhere: Parts  # of these, what nobody has on disk either

    def why(self) -> str:
        """Say what is missing, and why; empty if nothing is."""
        reasons = [f"{self.nowhere} on no reachable node"] if self.nowhere else []
        stored = self.unloaded - self.nowhere
        return "; ".join(reasons + ([f"{stored} on disk, and loaded by nobody"] if stored else []))


def count_copies(block_count: int, stages: Sequence[Loaded], holdings: Sequence[Holding]) -> Copies:
    """Count what nodes have loaded (`stages`, one entry for each) and what they have on disk (`holdings`) of one model."""
    loaded = _Counts.of(block_count, ((stage.embedding, (stage.blocks,), stage.head) for stage in stages))
    stored = _Counts.of(block_count, ((each.embedding, each.blocks, each.head) for each in holdings))
    unloaded = loaded.none()
    return Copies(stored.least, loaded.least, unloaded, unloaded - (unloaded - stored.none()))


def only_in(own: Holding, others: Sequence[Holding]) -> Parts:
    """Return what of `own` none of the others has of the same model."""
    nowhere = _Counts.of(own.block_count, ((each.embedding, each.blocks, each.head) for each in others)).none()
    mine = _Counts.of(own.block_count, [(own.embedding, own.blocks, own.head)]).none()
    return nowhere - mine


@attrs.frozen
class _Counts:
    """How many have each part."""

    blocks: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, block_count: int, nodes: Iterable[tuple[bool, Iterable[BlockRange], bool]]) -> "_Counts":
        """Count over nodes: whether each has the embedding, its blocks, whether it has the head."""
        blocks, ends = [0] * block_count, [0, 0]
        for embedding, ranges, head in nodes:
            ends[0] += embedding
            ends[1] += head
            for block in _within(block_count, ranges):
                blocks[block] += 1
        return cls(blocks, ends)

    @property
    def least(self) -> int:
        """How many have what the fewest have."""
        return min((*self.blocks, *self.ends))

    def none(self) -> Parts:
        """Return what nobody has."""
        blocks = frozenset(block for block, count in enumerate(self.blocks) if not count)
        return Parts(blocks, frozenset(kind for kind, count in zip(_ENDS, self.ends, strict=True) if not count))


def _within(block_count: int, ranges: Iterable[BlockRange]) -> Iterator[int]:
    return (block for blocks in ranges for block in range(blocks.start, min(blocks.end, block_count)))
