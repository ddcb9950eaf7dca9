"""Token buckets by key, with a bound on the number of keys."""

from collections import OrderedDict

import attrs
import trio

__all__ = ["KeyedBuckets"]


@attrs.define(eq=False)
class KeyedBuckets:
    """Each key may act `rate` times a second on average and `burst` times at once.

    At most `max_keys` are remembered. The one unused longest is forgotten first, which forgives it: an address that comes
    from many keys is limited by the number of connections instead.
    """

    rate: float  # per second, > 0
    burst: float  # >= 1
    max_keys: int = 10_000
    _levels: OrderedDict[str, tuple[float, float]] = attrs.field(factory=OrderedDict, init=False)  # level, at

    def try_take(self, key: str) -> float | None:
        """Take one token and return None, or return the seconds until there is one."""
        now = trio.current_time()
        level, at = self._levels.pop(key, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.rate)
        wait = None if level >= 1 else (1 - level) / self.rate
        self._levels[key] = (level - 1 if wait is None else level, now)
        while len(self._levels) > self.max_keys:
            self._levels.popitem(last=False)
        return wait
