"""What one node does next: which segments it fetches, and which it lets go. Pure.

Every node computes the same ranks from nearly the same view, and acts only if it is among the first of them, so a gap is filled
by as many as it needs and not by all who see it. What somebody is fetching counts as held there, and is told by gossip.
"""

from collections.abc import Callable

import attrs

from meshnode.placement.models import Segment
from meshnode.placement.ranking import is_among_best, score
from meshnode.placement.targets import Target
from meshnode.placement.view import MeshState
from meshnode.types.ids import PeerId

__all__ = ["Decision", "decide"]

_CROWDED = 0.1  # share of a budget that is kept free by letting go what is not needed


@attrs.frozen
class Decision:
    """What to do, the most urgent first."""

    acquire: tuple[Segment, ...] = ()
    drop: tuple[Segment, ...] = ()


def _anything(_segment: Segment) -> bool:
    return True


def decide(
    state: MeshState,
    own: PeerId,
    *,
    kept: frozenset[Segment] = frozenset(),
    limit: int = 2,
    can_fetch: Callable[[Segment], bool] = _anything,
) -> Decision:
    """Return what node `own` should do: at most `limit` segments to fetch, of those it can, any number to let go.

    Nothing is dropped that is in `kept` (in use, pinned here), that is the last copy, or at or below its target; nothing is
    fetched that the same state would let go again, for both look at the same band.
    """
    return Decision(_gains(state, own, limit, can_fetch), _drops(state, own, kept))


def _gains(state: MeshState, own: PeerId, limit: int, can_fetch: Callable[[Segment], bool]) -> tuple[Segment, ...]:
    chosen: list[Segment] = []
    free, member = state.free[own], state.members[own]
    for segment, missing in state.gaps:
        nbytes = state.models[segment.model].segment_bytes(segment.index)
        is_free = state.members[own].can_add(segment) and member.can_add(
            segment
        )  # as others see us, and after the first
        if len(chosen) == limit or nbytes > free or not is_free or not can_fetch(segment):
            continue
        others = (
            member
            for member in state.members.values()
            if state.free[member.peer] >= nbytes and member.peer != own and member.can_add(segment)
        )
        if is_among_best(segment, state.members[own], state.free, others, missing):
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
        target, holders = state.targets.get(segment.model), state.holders[segment]
        is_crowded = lacking > 0
        surplus = len(holders) - _allowed(len(holders), target, is_crowded=is_crowded)
        if surplus > 0 and own in _last(state, segment, surplus):
            dropped.append(segment)
            lacking -= state.models[segment.model].segment_bytes(segment.index)
    return tuple(dropped)


def _allowed(copies: int, target: Target | None, *, is_crowded: bool) -> int:
    """Return how many copies may stay. What nobody wants costs nothing until its room is needed."""
    if target is None:
        return 0 if is_crowded else copies
    return max(1, target.copies if is_crowded else target.high)


def _last(state: MeshState, segment: Segment, count: int) -> list[PeerId]:
    """Return the holders that suit a segment least, of those whose run has its end there."""
    members = [state.members[peer] for peer in state.holders[segment] if state.members[peer].can_drop(segment)]
    scored = sorted((score(segment, member, member.budget), member.peer) for member in members)
    return [peer for _, peer in scored[:count]]
