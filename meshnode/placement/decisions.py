"""What one node does next: which segments it fetches, and which it lets go. Pure.

Every node computes the same ranks from nearly the same view, and acts only if it is among the first of them, so a gap is filled
by as many as it needs and not by all who see it. What somebody is fetching counts as held there, and is told by gossip. One of
the first may be unable or unwilling to act: so a gap that stays open is left to more and more of those who come after them.
"""

from collections.abc import Callable

import attrs

from meshnode.placement.models import Segment
from meshnode.placement.ranking import is_among_best, luck, score
from meshnode.placement.targets import Target
from meshnode.placement.view import MeshState
from meshnode.types.ids import PeerId

__all__ = ["Decision", "decide"]

_CROWDED = 0.1  # share of a budget that is kept free by letting go what is not needed
_IN_HAND = 1  # copies more than are wanted stay: that one of the others leaves must not be a reason to fetch
_WIDENS = 900.0  # seconds until twice as many may fill a gap; three looks, of which the first may have come too early
_WIDEST = 16  # times twice as many


@attrs.frozen
class Decision:
    """What to do, the most urgent first."""

    acquire: tuple[Segment, ...] = ()
    drop: tuple[Segment, ...] = ()


def _anything(_segment: Segment) -> bool:
    return True


def _just_now(_segment: Segment) -> float:
    return 0.0


def decide(
    state: MeshState,
    own: PeerId,
    *,
    kept: frozenset[Segment] = frozenset(),
    limit: int = 2,
    can_fetch: Callable[[Segment], bool] = _anything,
    waited: Callable[[Segment], float] = _just_now,
) -> Decision:
    """Return what node `own` should do: at most `limit` segments to fetch, of those it can, any number to let go.

    `waited`: for how many seconds it has seen a gap that nobody fills. Nothing is dropped that is in `kept` (in use, pinned
    here), that is the last copy, wanted or not, or at or below its target; nothing is fetched that the same state would let go
    again, for both look at the same band.
    """
    return Decision(_gains(state, own, limit, can_fetch, waited), _drops(state, own, kept))


def _gains(
    state: MeshState,
    own: PeerId,
    limit: int,
    can_fetch: Callable[[Segment], bool],
    waited: Callable[[Segment], float],
) -> tuple[Segment, ...]:
    chosen: list[Segment] = []
    free, seen = state.free[own], state.members[own]  # as others see us
    member = seen  # and after the first
    for segment, missing in state.gaps:
        if len(chosen) >= limit:
            break
        nbytes = state.models[segment.model].segment_bytes(segment.index)
        if nbytes > free or not (seen.can_add(segment) and member.can_add(segment) and can_fetch(segment)):
            continue
        # What nobody here has, one is to fetch from outside, of those who may know where that is; the others from that one.
        is_lost = state.is_lost(segment) and seen.has_part_of(segment.model)
        others = (
            other
            for other in state.likeliest
            if state.free[other.peer] >= nbytes
            and other.peer != own
            and other.can_add(segment)
            and (not is_lost or other.has_part_of(segment.model))
        )
        places = (1 if is_lost else missing) << min(_WIDEST, int(waited(segment) / _WIDENS))
        if is_among_best(segment, seen, state.free, others, places):
            chosen.append(segment)
            member = attrs.evolve(member, held=member.held | {segment})
            free -= nbytes
    return tuple(chosen)


def _drops(state: MeshState, own: PeerId, kept: frozenset[Segment]) -> tuple[Segment, ...]:
    member = state.members[own]
    dropped: list[Segment] = []
    lacking = _CROWDED * member.budget - state.free[own]
    order = sorted(
        member.held, key=lambda each: (each.model in state.targets, each.model, each.index)
    )  # the unwanted first
    for segment in order:
        if segment in kept or segment in member.claimed or segment.model not in state.models:
            continue
        if not (member.can_drop(segment) and attrs.evolve(member, held=member.held - set(dropped)).can_drop(segment)):
            continue
        copies, is_crowded = state.copies(segment), lacking > 0
        allowed = _allowed(copies, state.targets.get(segment.model), is_crowded=is_crowded)
        surplus = min(copies - allowed, state.sources(segment) - 1)  # what is on its way may never come
        if surplus > 0 and own in _last(state, segment, surplus):
            dropped.append(segment)
            lacking -= state.models[segment.model].segment_bytes(segment.index)
    return tuple(dropped)


def _allowed(copies: int, target: Target | None, *, is_crowded: bool) -> int:
    """Return how many copies may stay: one at least. More of what nobody wants cost nothing until their room is needed."""
    if target is None:
        return 1 if is_crowded else copies
    return max(1, target.copies + _IN_HAND if is_crowded else target.high)


def _last(state: MeshState, segment: Segment, count: int) -> list[PeerId]:
    """Return the holders that are to let a segment go, of those whose run has its end there.

    Who needs the room goes first, then who suits it least. Who comes first by hash alone stays, the same of all of a model: two
    who see each other's uptime or room differently agree on that, and so do not both rely on the other's copy.
    """
    holders = [state.members[peer] for peer in state.arrived(segment)]
    stays = max(holders, key=lambda member: luck(Segment(segment.model, -1), member.peer)).peer
    scored = sorted(
        (state.free[member.peer] >= _CROWDED * member.budget, score(segment, member, member.budget), member.peer)
        for member in holders
        if member.can_drop(segment) and member.peer != stays
    )
    return [peer for _, _, peer in scored[:count]]
