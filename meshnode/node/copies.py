"""Where the parts of a model lie, on disks and in workers, counted over this node and its peers: pure."""

from collections.abc import Iterable, Sequence

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.peers import Holding

__all__ = ["Copies", "count_copies", "only_in", "written"]


@attrs.frozen
class Copies:
    """How often a model is there, by its rarest part."""

    disks: int  # nodes that have on disk what the fewest have, ends counted
    routes: int  # complete routes that share no node: nodes that have loaded the block that the fewest have
    unloaded: tuple[int, ...]  # blocks that nobody has loaded
    nowhere: tuple[int, ...]  # of these, blocks that nobody has on disk either

    def why(self) -> str:
        """Say which blocks are missing, and why; empty if none is."""
        stored = [block for block in self.unloaded if block not in self.nowhere]
        reasons = [f"{written(self.nowhere)} on no reachable node"] if self.nowhere else []
        return "; ".join(reasons + ([f"{written(stored)} on disk, and loaded by nobody"] if stored else []))


def count_copies(block_count: int, stages: Iterable[BlockRange], holdings: Sequence[Holding]) -> Copies:
    """Count what nodes have loaded (`stages`, one entry for each) and what they have on disk (`holdings`) of one model."""
    loaded, stored = [0] * block_count, [0] * block_count
    for blocks in stages:
        for block in range(blocks.start, min(blocks.end, block_count)):
            loaded[block] += 1
    for holding in holdings:
        for blocks in holding.blocks:
            for block in range(blocks.start, min(blocks.end, block_count)):
                stored[block] += 1
    ends = (sum(holding.embedding for holding in holdings), sum(holding.head for holding in holdings))
    unloaded = tuple(block for block, count in enumerate(loaded) if not count)
    nowhere = tuple(block for block in unloaded if not stored[block])
    return Copies(min((*stored, *ends)), min(loaded, default=0), unloaded, nowhere)


def only_in(own: Holding, others: Sequence[Holding]) -> str:
    """Write what of `own` none of the others has of the same model; empty if they have all of it."""
    blocks = [block for each in own.blocks for block in each if not any(other.has(block) for other in others)]
    embedding = own.embedding and not any(other.embedding for other in others)
    head = own.head and not any(other.head for other in others)
    return ", ".join(["the embedding"] * embedding + [written(blocks)] * bool(blocks) + ["the head"] * head)


def written(blocks: Iterable[int]) -> str:
    """Write ascending blocks as half-open ranges."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block:
            runs[-1][1] = block + 1
        else:
            runs.append([block, block + 1])
    return "blocks " + ", ".join(f"{start}:{end}" for start, end in runs)
