"""A route: which peer runs which blocks of one session, in order."""

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId

__all__ = ["Route", "Stage"]


@attrs.frozen
class Stage:
    """A computation by one peer. `blocks` is None for a stage that only embeds, or only has the head."""

    peer: PeerId
    blocks: BlockRange | None
    embedding: bool = False
    head: bool = False

    def __str__(self) -> str:
        parts = ["embedding" * self.embedding, str(self.blocks or ""), "head" * self.head]
        what = str(self.blocks) if self.blocks is not None else "+".join(part for part in parts if part)
        return f"{self.peer[-6:]} {what}"


@attrs.frozen
class Route:
    """Ordered stages that together are the whole model. The coordinator is the peer of the first."""

    model: ModelId
    stages: tuple[Stage, ...]
    drift_class: str  # of all stages, or "mixed"
    reason: str = ""  # why the planner chose it, for people
    step_seconds: float = 0.0  # expected time of one decode step: compute and one ring round trip

    @property
    def coordinator(self) -> PeerId:
        """Who drives the session."""
        return self.stages[0].peer

    @property
    def peers(self) -> frozenset[PeerId]:
        """Everybody who takes part."""
        return frozenset(stage.peer for stage in self.stages)

    def __str__(self) -> str:
        return " > ".join(map(str, self.stages))
