"""What each model of the mesh lacks, and why this node holds it or not."""

from collections.abc import Collection, Mapping

import attrs

from meshnode.placement.models import ModelFacts, Segment
from meshnode.placement.view import MeshState
from meshnode.types.ids import ModelId, PeerId

__all__ = ["Wish", "Wishlist", "wishlist"]


@attrs.frozen
class Wish:
    """One row."""

    model: ModelId | None  # None: of a hub, and nobody knows its bytes yet
    name: str
    status: str  # hosting, serveable, wanted, unreachable, candidate or blocked
    reasons: tuple[str, ...]  # one at least
    copies: int  # of the segment that has the fewest, those on their way counted
    target: int  # copies that the mesh wants; 0: nobody wants it
    demand: float  # requests per hour, all members together
    held_percent: int  # of it, by this node
    reference: str = ""  # what fetches it from the hub
    trust: str = ""  # how far a repository of the hub is trusted
    downloads: int = 0  # of it, by the hub's count
    likes: int = 0


@attrs.frozen
class Wishlist:
    """What the mesh lacks, as of a moment."""

    wishes: tuple[Wish, ...] = ()
    made: float | None = None  # on the clock of trio.current_time(); None: nobody has looked yet


def wishlist(
    state: MeshState, own: PeerId, names: Mapping[ModelId, str], fetching: Collection[Segment] = ()
) -> tuple[Wish, ...]:
    """Return all known models, the most wanted first; `fetching` is on its way to this node."""
    order = sorted(state.models.values(), key=lambda facts: (-facts.demand, not facts.is_pinned, facts.model))
    return tuple(_wish(state, own, facts, names.get(facts.model, facts.model[:12]), fetching) for facts in order)


def _wish(state: MeshState, own: PeerId, facts: ModelFacts, name: str, fetching: Collection[Segment]) -> Wish:
    segments = list(facts.segments())
    target = state.targets.get(facts.model)
    counts = [state.copies(segment) for segment in segments]
    held = sum(segment in state.members[own].held for segment in segments)
    missing = counts.count(0)
    reasons: list[str] = []
    if missing:
        reasons.append(f"{missing} of {len(segments)} parts are held by nobody who is here")
    is_wanted = facts.demand > 0 or facts.is_pinned
    if target is None:
        reasons.append("no member gives room for more of it" if is_wanted else "nobody asks for it")
    elif min(counts) < target.low:
        reasons.append(f"{min(counts)} copies of its rarest part, and {target.copies} are wanted")
    else:
        reasons.append(f"{min(counts)} copies of its rarest part are enough")
    if any(segment.model == facts.model for segment in fetching):
        reasons.append("this node is fetching a part of it")
    elif is_wanted and not held and facts.segment_bytes(0) > state.free[own]:
        reasons.append("this node has no room for a part of it")
    if facts.is_pinned:
        reasons.append("a person asked for it")
    copies = 0 if target is None else target.copies
    return Wish(
        facts.model,
        name,
        _status(
            missing, held, is_wanted=is_wanted, is_short=is_wanted and (target is None or min(counts) < target.low)
        ),
        tuple(reasons),
        min(counts),
        copies,
        round(facts.demand, 2),
        100 * held // len(segments),
    )


def _status(missing: int, held: int, *, is_wanted: bool, is_short: bool) -> str:
    if missing:
        return "unreachable"
    if held:
        return "hosting"
    if is_short:
        return "wanted"
    return "serveable" if is_wanted else "candidate"
