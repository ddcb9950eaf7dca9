"""The pieces that nodes hold of a model of their own accord: runs of blocks, cut by the count of blocks alone."""

import functools

from meshnode.types.blocks import BlockRange

__all__ = ["segments_of"]

_MOST = 8  # of one model: a route has no more stages than that, and a node of an eighth of the memory helps


@functools.lru_cache(maxsize=256)
def segments_of(block_count: int) -> tuple[BlockRange, ...]:
    """Return the segments of a model; all nodes cut alike."""
    count = min(_MOST, block_count)
    return tuple(BlockRange(index * block_count // count, (index + 1) * block_count // count) for index in range(count))
