"""Who should hold a segment: weighted rendezvous hashing, so that a change of members moves a minimal share.

The highest -w / ln(h) wins with a probability proportional to w (Schindelhauer and Schomaker, "Weighted distributed hash tables",
2005), h being the hash of segment and member as a number between 0 and 1. The weight of a member is its free room, more when it
holds a neighbouring segment, for then a route has a stage less, more when it is fast, and less while it has not been up for long:
who has been up for an hour tends to stay.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

from meshnode.placement.models import Segment
from meshnode.placement.view import MemberView
from meshnode.types.ids import ModelId, PeerId

__all__ = ["is_among_best", "luck", "score"]

_NEIGHBOUR = 4.0  # times the weight


def is_among_best(
    segment: Segment, own: MemberView, free: Mapping[PeerId, int], others: Iterable[MemberView], places: int
) -> bool:
    """Say whether fewer than `places` of the others suit a segment better; the same order at every node with the same view.

    Ends as soon as that many are found: with the likeliest first, one that is not among the best has looked at a few of them.
    """
    mine = (score(segment, own, free[own.peer]), own.peer)
    for other in others:
        if (score(segment, other, free[other.peer]), other.peer) > mine:
            places -= 1
            if places <= 0:
                return False
    return places > 0


def score(segment: Segment, member: MemberView, free: int) -> float:
    """Return how well a member with `free` bytes suits a segment; higher is better."""
    weight = free * member.standing * (_NEIGHBOUR if member.holds_neighbour(segment) else 1.0)
    return weight * _luck(segment.model, segment.index, member.peer)


def luck(segment: Segment, peer: PeerId) -> float:
    """Return what the hash alone says for a member; above 0, higher is better."""
    return _luck(segment.model, segment.index, peer)


@lru_cache(maxsize=1 << 18)
def _luck(model: ModelId, index: int, peer: PeerId) -> float:
    digest = hashlib.blake2b(f"{model}:{index}:{peer}".encode(), digest_size=8).digest()
    return -1 / math.log((int.from_bytes(digest, "big") + 1) / (2**64 + 2))
