"""How fast the stage computes, as a moving mean over real steps: what the planner of every node counts with."""

import attrs

__all__ = ["Counters", "Pace"]

_WEIGHT = 1 / 8  # of a new sample in the mean
_MANY = 32  # rows from which a step counts as prefill


@attrs.define(eq=False)
class Counters:
    """Work done so far."""

    prefill_tokens: int = 0
    decode_tokens: int = 0


@attrs.define(eq=False)
class Pace:
    """Seconds per row and block, without embedding and head."""

    block_seconds: float = 0.0  # one row alone: decode
    prefill_seconds: float = 0.0  # one of many rows

    def saw(self, rows: int, blocks: int, seconds: float) -> None:
        """Take in a step through `blocks` blocks. A few rows at once are neither decode nor prefill, and tell nothing."""
        sample = seconds / (rows * blocks)
        if rows == 1:
            self.block_seconds = _mixed(self.block_seconds, sample)
        elif rows >= _MANY:
            self.prefill_seconds = _mixed(self.prefill_seconds, sample)

    def forget(self) -> None:
        """Begin anew: what was seen was not typical."""
        self.block_seconds = self.prefill_seconds = 0.0


def _mixed(mean: float, sample: float) -> float:
    return sample if not mean else mean + _WEIGHT * (sample - mean)
