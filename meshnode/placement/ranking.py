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
from meshnode.types.ids import PeerId

__all__ = ["is_among_best", "luck", "score"]

_NEIGHBOUR = 4.0  # times the weight
_SETTLED = 6 * 3600.0  # seconds of uptime for the full weight
_NEWCOMER = 0.1  # of the weight at the start


def is_among_best(
    segment: Segment, own: MemberView, free: Mapping[PeerId, int], others: Iterable[MemberView], places: int
) -> bool:
    """Say whether fewer than `places` of the others suit a segment better; the same order at every node with the same view.

    Ends as soon as that many are found: one that is not among the best has looked at a few of the others.
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
    weight = free * member.speed * (_NEWCOMER + (1 - _NEWCOMER) * min(1.0, member.uptime / _SETTLED))
    if any(neighbour in member.held for neighbour in segment.neighbours()):
        weight *= _NEIGHBOUR
    return weight * luck(segment, member.peer)


@lru_cache(maxsize=1 << 18)
def luck(segment: Segment, peer: PeerId) -> float:
    """Return what the hash alone says for a member; above 0, higher is better."""
    digest = hashlib.blake2b(f"{segment.model}:{segment.index}:{peer}".encode(), digest_size=8).digest()
    return -1 / math.log((int.from_bytes(digest, "big") + 1) / (2**64 + 2))
