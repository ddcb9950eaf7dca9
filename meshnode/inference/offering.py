"""What this node tells others it can run. Numbers that wobble are told only when they have changed by much."""

from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from meshnode.flow.latest import Latest
from meshnode.inference.route_finder import OwnStage
from meshnode.types.peers import Offering, StageOffer

__all__ = ["keep_offering"]

_LOOK_EVERY = 1.0  # seconds
_MUCH = 1.5  # a factor


class _Load(Protocol):
    """Counts the stages hosted for others."""

    def __len__(self) -> int: ...


async def keep_offering(stages: Callable[[], tuple[OwnStage, ...]], hosted: _Load, offering: Latest[Offering]) -> None:
    """Keep `offering` true until cancelled; then nothing is offered."""
    try:
        while True:
            own = stages()
            now = Offering(tuple(stage.offer for stage in own), sum(stage.sessions for stage in own) + len(hosted))
            if _differs(now, offering.value):
                offering.set(now)
            await trio.sleep(_LOOK_EVERY)
    finally:
        offering.set(Offering())


def _differs(now: Offering, told: Offering) -> bool:
    """Whether others would plan differently if they knew."""
    if len(now.stages) != len(told.stages) or _far(now.sessions + 1, told.sessions + 1):
        return True
    return any(_stage_differs(*pair) for pair in zip(now.stages, told.stages, strict=True))


def _stage_differs(now: StageOffer, told: StageOffer) -> bool:
    rough = attrs.evolve(
        now,
        block_seconds=told.block_seconds,
        prefill_seconds=told.prefill_seconds,
        free_tokens=told.free_tokens,
    )
    return (
        rough != told
        or _far(now.block_seconds, told.block_seconds)
        or _far(now.prefill_seconds, told.prefill_seconds)
        or _far(now.free_tokens + 64, told.free_tokens + 64)
    )


def _far(one: float, other: float) -> bool:
    """Whether two positive numbers differ by a factor that matters."""
    low, high = sorted((one, other))
    return high > low * _MUCH
