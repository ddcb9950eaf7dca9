"""How many copies of each model the mesh wants: more of what is asked for, as many as there is room for, never fewer than two."""

import math
from collections.abc import Mapping

import attrs

from meshnode.placement.models import ModelFacts
from meshnode.types.ids import ModelId

__all__ = ["Target", "demand_tier", "targets"]

_FLOOR = 2  # copies, where there are as many members
_FILL = 0.75  # share of all budgets that targets may claim; the rest is room for repairs


@attrs.frozen
class Target:
    """Copies of each segment. Fewer than `low` are repaired, more than `high` are thinned out, between them nothing moves."""

    low: int
    copies: int
    high: int

    @classmethod
    def of(cls, copies: int, members: int) -> "Target":
        """Return the band around a number of copies."""
        copies = min(copies, members)
        low = min(copies, max(min(_FLOOR, members), math.ceil(copies * 0.7)))
        return cls(low, copies, copies + max(2, copies // 2))


def demand_tier(demand: float) -> float:
    """Return by how much the base of `ceil(log2(members))` copies is multiplied, for requests per hour."""
    if demand <= 0:
        return 0.0
    return 0.34 if demand < 6 else 0.67 if demand < 60 else 1.0


def targets(models: Mapping[ModelId, ModelFacts], members: int, budget: int) -> Mapping[ModelId, Target]:
    """Return the target of every model that anybody wants; others have none, and what is held of them may go.

    When there is not enough room for all, the copies beyond two shrink for everybody; when there is not enough for two of each,
    the models that are asked for most keep theirs. The same for every member that has the same state.
    """
    wanted = {facts.model: facts for facts in models.values() if facts.demand > 0 or facts.is_pinned}
    if not members or not wanted:
        return {}
    base = max(1, math.ceil(math.log2(members))) if members > 1 else 1
    floor = min(_FLOOR, members)
    copies = {model: max(floor, math.ceil(base * demand_tier(facts.demand))) for model, facts in wanted.items()}
    copies = _fitted(copies, wanted, _FILL * budget, floor)
    return {model: Target.of(count, members) for model, count in copies.items() if count}


def _fitted(
    copies: dict[ModelId, int], wanted: Mapping[ModelId, ModelFacts], room: float, floor: int
) -> dict[ModelId, int]:
    def size(counts: Mapping[ModelId, int]) -> int:
        return sum(count * wanted[model].nbytes for model, count in counts.items())

    least = dict.fromkeys(copies, floor)
    if size(copies) <= room:
        return copies
    if size(least) <= room:
        share = (room - size(least)) / max(1, size(copies) - size(least))
        return {model: floor + math.floor((count - floor) * share) for model, count in copies.items()}
    left, chosen = room, dict.fromkeys(copies, 0)
    order = sorted(wanted.values(), key=lambda facts: (-facts.is_pinned, -facts.demand / facts.nbytes, facts.model))
    for count in range(1, floor + 1):  # one of each before two of any
        for facts in order:
            if chosen[facts.model] == count - 1 and facts.nbytes <= left:
                chosen[facts.model], left = count, left - facts.nbytes
    return chosen
