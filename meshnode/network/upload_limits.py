"""How fast this node gives shards to others."""

import threading
import time

import attrs

from meshnode.types.ids import PeerId

__all__ = ["UploadLimits"]

_BURST = 0.25  # seconds' worth that may go at once


@attrs.define(eq=False)
class _Pace:
    """A leaky bucket that says how long to wait."""

    rate: float  # bytes per second; 0: no limit
    _free_at: float = attrs.field(default=0.0, init=False)  # time.monotonic()

    def reserve(self, nbytes: int, now: float) -> float:
        if not self.rate:
            return 0.0
        self._free_at = max(self._free_at, now - _BURST) + nbytes / self.rate
        return max(0.0, self._free_at - now)


@attrs.define(eq=False)
class UploadLimits:
    """The limits of one node: bytes per second in total and to each peer, 0 for none. Used by many threads."""

    total: float = 0.0
    per_peer: float = 0.0
    _all: _Pace = attrs.field(init=False)
    _peers: dict[PeerId, _Pace] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._all = _Pace(self.total)

    def reserve(self, peer: PeerId, nbytes: int) -> float:
        """Take leave to send `nbytes` to `peer`, and return in how many seconds."""
        with self._lock:
            now = time.monotonic()
            pace = self._peers.setdefault(peer, _Pace(self.per_peer))
            return max(self._all.reserve(nbytes, now), pace.reserve(nbytes, now))

    def forget(self, peer: PeerId) -> None:
        """Forget a peer that has no connection any more."""
        with self._lock:
            self._peers.pop(peer, None)
