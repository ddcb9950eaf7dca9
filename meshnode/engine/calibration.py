"""Measures a stage that was just loaded, so that others know how fast it is before the first request."""

import time

import torch

from meshnode.engine.stage_loading import LoadedStage
from meshnode.engine.stage_model import Part, Rows
from meshnode.errors import OutOfMemory

__all__ = ["calibrate"]

_MANY = 32  # rows
_BUDGET = 0.2  # seconds, as far as it is ours to choose


def calibrate(stage: LoadedStage) -> None:
    """Run a few rows of zeros through the first blocks: as many as are done in time, the first one before the clock starts.

    Leaves `stage.pace` at zero for a stage without blocks, or whose cache has no room for a page.
    """
    if not stage.blocks:
        return
    try:
        cache = stage.open_cache(_MANY)
    except OutOfMemory:
        return
    rows = torch.zeros(_MANY, stage.spec.config.hidden_size, dtype=torch.bfloat16)

    def seconds(count: int, blocks: int) -> float:
        cache.truncate(0)
        began = time.perf_counter()
        step = Rows(cache, rows[:count], "none")  # type: ignore[arg-type]  # a Cache will do
        stage.forward([step], Part(range(blocks), embedding=False, head=False))
        return time.perf_counter() - began

    try:
        seconds(_MANY, 1)  # a page's memory and torch's scratch come to life
        seconds(1, 1)
        stage.pace.forget()
        cold = seconds(_MANY, 1) + 3 * seconds(1, 1)
        blocks = max(1, min(len(stage.blocks), int(_BUDGET / cold)))
        stage.pace.forget()
        seconds(_MANY, blocks)
        for _ in range(3):
            seconds(1, blocks)
    except OutOfMemory:  # of a device that others use too; sessions will be told
        stage.pace.forget()
    finally:
        cache.close()
