"""What a node knows of the mesh when it decides what to hold: values, made from what members say of themselves."""

from collections.abc import Mapping
from functools import cached_property

import attrs

from meshnode.placement.models import ModelFacts, Segment
from meshnode.placement.targets import Target, targets
from meshnode.types.ids import ModelId, PeerId

__all__ = ["MemberView", "MeshState"]


@attrs.frozen(slots=False)
class MemberView:
    """One member, as it describes itself."""

    peer: PeerId
    budget: int  # bytes of shards that it is willing and able to hold
    held: frozenset[Segment]  # and what it is fetching
    claimed: frozenset[Segment] = frozenset()  # of these, what it is still fetching
    uptime: float = 0.0  # seconds

    @cached_property
    def models(self) -> frozenset[ModelId]:
        """What it holds anything of."""
        return frozenset(segment.model for segment in self.held)

    def can_add(self, segment: Segment) -> bool:
        """Whether a segment would leave one run of blocks of its model: a node serves one stage of each."""
        if segment in self.held:
            return False
        return segment.model not in self.models or any(each in self.held for each in segment.neighbours())

    def can_drop(self, segment: Segment) -> bool:
        """Whether one run is left without it."""
        return not all(each in self.held for each in segment.neighbours())


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
    def free(self) -> Mapping[PeerId, int]:
        """Bytes that each member has left of its budget; may be negative."""
        return {member.peer: member.budget - self._used(member) for member in self.members.values()}

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
                count = len(self.holders[segment])
                if count < target.low:
                    found.append((count, -self.models[model].demand, model, segment.index, target.copies - count))
        return tuple((Segment(model, index), missing) for _, _, model, index, missing in sorted(found))

    def _used(self, member: MemberView) -> int:
        return sum(
            self.models[segment.model].segment_bytes(segment.index)
            for segment in member.held
            if segment.model in self.models
        )
