"""How fast the stage computes, as a moving mean over real steps: what the planner of every node counts with."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch

from meshnode.engine.stage_model import Part, Rows, StageModel
from meshnode.errors import OutOfMemory

__all__ = ["Counters", "Pace", "calibrate"]

_WEIGHT = 1 / 8  # of a new sample in the mean
_MANY = 32  # rows from which a step counts as prefill


@attrs.define(eq=False)
class Counters:
    """Work done so far."""

    prefill_tokens: int = 0
    decode_tokens: int = 0


@attrs.define(eq=False)
class Pace:
    """Seconds per block. Steps of a few rows, neither decode nor prefill, tell nothing."""

    block_seconds: float = 0.0  # one decode row through one block
    prefill_seconds: float = 0.0  # one of many rows through one block

    @contextmanager
    def measured(self, *, rows_in_all: int, blocks: int) -> Iterator[None]:
        """Measure a step; one that raises tells nothing."""
        began = time.perf_counter()
        yield
        if not blocks:
            return
        seconds = (time.perf_counter() - began) / blocks
        if rows_in_all == 1:
            self.block_seconds = _mixed(self.block_seconds, seconds)
        elif rows_in_all >= _MANY:
            self.prefill_seconds = _mixed(self.prefill_seconds, seconds / rows_in_all)


def calibrate(stage: StageModel, pace: Pace) -> None:
    """Measure the stage once with a few rows of zeros, so that there is a number before the first request.

    Takes about as long as two tokens and a short prompt; skipped when the cache has no room for one.
    """
    part = Part(range(len(stage.blocks)), embedding=False, head=False)
    try:
        cache = stage.open_cache(_MANY)
    except OutOfMemory:
        return
    try:
        for count in (1, 1, _MANY):  # the first one warms up
            cache.truncate(0)
            inputs = torch.zeros(count, stage.spec.config.hidden_size, dtype=torch.bfloat16)
            began = time.perf_counter()
            stage.forward([Rows(cache, inputs, "none")], part)
            seconds = (time.perf_counter() - began) / len(stage.blocks)
            if count == 1:
                pace.block_seconds = seconds
            else:
                pace.prefill_seconds = seconds / count
    finally:
        cache.close()


def _mixed(mean: float, sample: float) -> float:
    return sample if not mean else mean + _WEIGHT * (sample - mean)
