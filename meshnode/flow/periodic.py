"""A ticker that does not drift, with jitter so that many nodes do not act in step."""

import random
from typing import Self

import attrs
import trio

__all__ = ["Ticker"]


@attrs.define(eq=False)
class Ticker:
    """Iterates 0, 1, 2 … about every `period` seconds, the first at once.

    Tick n is due at start + n * period plus up to `jitter` * period; ticks missed while the caller was busy are skipped, not
    made up for. Cancellation ends the wait.
    """

    period: float  # seconds
    jitter: float = 0.0  # share of the period
    rng: random.Random = attrs.field(factory=random.Random)
    _start: float = attrs.field(factory=trio.current_time, init=False)
    _tick: int = attrs.field(default=-1, init=False)

    def __aiter__(self) -> Self:
        """Iterate the ticks."""
        return self

    async def __anext__(self) -> int:
        """Wait for the next tick and return its number."""
        if self._tick < 0:
            self._tick = 0
            await trio.lowlevel.checkpoint()
            return 0
        self._tick = max(self._tick + 1, int((trio.current_time() - self._start) / self.period) + 1)
        await trio.sleep_until(self._start + self.period * (self._tick + self.jitter * self.rng.random()))
        return self._tick
