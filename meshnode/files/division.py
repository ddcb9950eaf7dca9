"""Divides a model that comes from a hub among those who have room for it: pure."""

from collections.abc import Mapping, Sequence

from meshnode.types.blocks import BlockRange
from meshnode.types.ids import PeerId

__all__ = ["divide"]


def divide(
    segments: Sequence[BlockRange], block_bytes: int, own_bytes: int, helpers: Mapping[PeerId, int]
) -> tuple[BlockRange, dict[PeerId, BlockRange]]:
    """Return the blocks of this node, the first ones, and those of each helper that gets any.

    `block_bytes` is the size of a block; `own_bytes` and `helpers` say how much room there is. Shares are in proportion to the
    room, cut at segments, and never larger than the room of a helper; what fits nobody else is this node's.
    """
    total = block_bytes * segments[-1].end
    left = len(segments)
    shares: dict[PeerId, BlockRange] = {}
    order = sorted(helpers, key=lambda peer: (-helpers[peer], peer))[: len(segments) - 1]
    weight = sum(min(helpers[peer], total) for peer in order) + min(own_bytes, total)
    for peer in order:
        goal = block_bytes * segments[left - 1].end * min(helpers[peer], total) / max(weight, 1)
        weight -= min(helpers[peer], total)
        first, taken = left, 0
        while first > 1:
            size = block_bytes * len(segments[first - 1])
            if taken + size > helpers[peer] or (taken and taken + size / 2 > goal):
                break
            first, taken = first - 1, taken + size
        if taken:
            shares[peer] = BlockRange(segments[first].start, segments[left - 1].end)
            left = first
    return BlockRange(0, segments[left - 1].end), shares
