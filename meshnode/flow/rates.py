"""How often things have happened lately: counts that fade."""

from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs
import trio

__all__ = ["FadingRates"]

K = TypeVar("K", bound=Hashable)
_MAX_KEYS = 4096  # the one that counts least goes first
_FORGOTTEN = 0.01  # events left of a key, below which it is dropped


@attrs.define(eq=False)
class FadingRates(Generic[K]):
    """Events per hour by key, each event counting half after `half_life` seconds.

    A steady r events per second leave r * half_life / ln 2 events in the sum, which is what the rate is computed from.
    """

    half_life: float = 3600.0
    _sums: dict[K, tuple[float, float]] = attrs.field(factory=dict, init=False)  # key: (sum, when it was that)

    def note(self, key: K) -> None:
        """Count one event now."""
        now = trio.current_time()
        self._sums[key] = (self._faded(key, now) + 1.0, now)
        if len(self._sums) > _MAX_KEYS:
            del self._sums[min(self._sums, key=lambda each: self._faded(each, now))]

    def per_hour(self) -> dict[K, float]:
        """Return all rates, and forget what has faded away."""
        now = trio.current_time()
        left = {key: self._faded(key, now) for key in self._sums}
        self._sums = {key: (count, now) for key, count in left.items() if count > _FORGOTTEN}
        return {
            key: count * 0.6931471805599453 * 3600.0 / self.half_life
            for key, count in left.items()
            if count > _FORGOTTEN
        }

    def _faded(self, key: K, now: float) -> float:
        count, at = self._sums.get(key, (0.0, now))
        return float(count * 0.5 ** ((now - at) / self.half_life))
