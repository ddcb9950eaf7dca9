"""What a node knows of the mesh when it decides what to hold: values, made from what members say of themselves."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import cached_property

import attrs

from meshnode.placement.models import ModelFacts, Segment
from meshnode.placement.targets import Target, targets
from meshnode.types.ids import ModelId, PeerId

__all__ = ["MemberView", "MeshState"]

_SETTLED = 6 * 3600.0  # seconds of uptime for the full weight
_NEWCOMER = 0.1  # of the weight at the start


@attrs.frozen(slots=False)
class MemberView:
    """One member, as it describes itself."""

    peer: PeerId
    budget: int  # bytes of shards that it is willing and able to hold
    held: frozenset[Segment]  # and what it is fetching
    claimed: frozenset[Segment] = frozenset()  # of these, what it is still fetching
    uptime: float = 0.0  # seconds
    loose: Mapping[Segment, frozenset[int]] = attrs.field(factory=dict)  # blocks that it has of segments it has in part
    speed: float = 1.0  # of what it runs, relative to the median of all

    @cached_property
    def standing(self) -> float:
        """What its room counts for: more when it is fast, and less while it has not been up for long."""
        return self.speed * (_NEWCOMER + (1 - _NEWCOMER) * min(1.0, self.uptime / _SETTLED))

    @cached_property
    def _runs(self) -> Mapping[ModelId, Set[int]]:
        """Numbers of the segments that it holds, by model: asked for every member and every gap, so looked up by words alone."""
        runs: dict[ModelId, set[int]] = {segment.model: set() for segment in self.loose}
        for segment in self.held:
            runs.setdefault(segment.model, set()).add(segment.index)
        return runs

    def holds_neighbour(self, segment: Segment) -> bool:
        """Whether it holds the segment before or the one after."""
        run = self._runs.get(segment.model, ())
        return segment.index - 1 in run or segment.index + 1 in run

    def has_part_of(self, model: ModelId) -> bool:
        """Whether it holds anything of a model."""
        return bool(self._runs.get(model)) or any(segment.model == model for segment in self.loose)

    def can_add(self, segment: Segment) -> bool:
        """Whether a segment would leave one run of blocks of its model: a node serves one stage of each."""
        run = self._runs.get(segment.model)
        if run is None:
            return True
        return segment.index not in run and (self.holds_neighbour(segment) or segment in self.loose)

    def can_drop(self, segment: Segment) -> bool:
        """Whether one run is left without it."""
        run = self._runs.get(segment.model, ())
        return not (segment.index - 1 in run and segment.index + 1 in run)


@attrs.frozen(eq=False, slots=False)
class MeshState:
    """Everything a decision is made from. Every member computes the same from the same state; each part once."""

    members: Mapping[PeerId, MemberView]  # alive, ourselves among them
    models: Mapping[ModelId, ModelFacts]

    @cached_property
    def holders(self) -> Mapping[Segment, list[PeerId]]:
        """Who holds each segment of a known model, or is fetching it; nobody's have an empty list."""
        found: dict[Segment, list[PeerId]] = {
            segment: [] for facts in self.models.values() for segment in facts.segments()
        }
        for member in self.members.values():
            for segment in member.held:
                if segment in found:
                    found[segment].append(member.peer)
        return found

    @cached_property
    def loose_copies(self) -> Mapping[Segment, int]:
        """How often each segment is there in pieces: models that were cut by hand are cut elsewhere than in segments."""
        pieces: dict[Segment, Counter[int]] = {}
        for member in self.members.values():
            for segment, blocks in member.loose.items():
                pieces.setdefault(segment, Counter()).update(blocks)
        return {
            segment: min(counts[block] for block in self.models[segment.model].blocks(segment.index))
            for segment, counts in pieces.items()
        }

    def copies(self, segment: Segment) -> int:
        """Return how often the rarest block of a segment is there, or on its way."""
        return len(self.holders[segment]) + self.loose_copies.get(segment, 0)

    def arrived(self, segment: Segment) -> list[PeerId]:
        """Return who has a whole segment, and is not still fetching it."""
        return [peer for peer in self.holders[segment] if segment not in self.members[peer].claimed]

    def least(self, model: ModelId) -> int:
        """Return how many copies there must be before one more may go: as many as would not be repaired, and one at least."""
        target = self.targets.get(model)
        return 1 if target is None else max(1, target.low)

    def sources(self, segment: Segment) -> int:
        """Return how often every block of a segment can be had from somebody."""
        return len(self.arrived(segment)) + self.loose_copies.get(segment, 0)

    def is_lost(self, segment: Segment) -> bool:
        """Whether nobody here has a part of it that would make it whole, nor is fetching it."""
        return self.copies(segment) == 0

    @cached_property
    def free(self) -> Mapping[PeerId, int]:
        """Bytes that each member has left of its budget; may be negative."""
        return {member.peer: member.budget - self._used(member) for member in self.members.values()}

    @cached_property
    def likeliest(self) -> Sequence[MemberView]:
        """All members, those first that most segments suit."""
        return sorted(self.members.values(), key=lambda each: -self.free[each.peer] * each.standing)

    @cached_property
    def targets(self) -> "Mapping[ModelId, Target]":
        """How many copies each wanted model should have."""
        return targets(self.models, len(self.members), sum(member.budget for member in self.members.values()))

    @cached_property
    def gaps(self) -> tuple[tuple[Segment, int], ...]:
        """Segments with too few copies and how many are missing to the target, the rarest first."""
        found = []
        for model, target in self.targets.items():
            for segment in self.models[model].segments():
                count = self.copies(segment)
                if count < target.low:
                    found.append((count, -self.models[model].demand, model, segment.index, target.copies - count))
        return tuple((Segment(model, index), missing) for _, _, model, index, missing in sorted(found))

    def _used(self, member: MemberView) -> int:
        whole = sum(
            self.models[segment.model].segment_bytes(segment.index)
            for segment in member.held
            if segment.model in self.models
        )
        return whole + sum(len(blocks) * self.models[each.model].block_bytes for each, blocks in member.loose.items())
