"""Activations have the right of way: while they pass, bulk goes in pieces that fill no queue, and rests in between.

A link is one queue, often that of a router which knows neither of us: what is in it goes before a token's activations. So a piece
is sent when nothing of the last one is on its way any more, by one connection of this node at a time, and then the link is left
alone for three times as long as the piece took. About a quarter is left to bulk, which so always comes to an end.
"""

import math
import threading
import time
from collections.abc import Callable

import attrs

__all__ = ["Courtesy", "RightOfWay"]

_LINGERS = 2.0  # seconds in which more activations are expected: a token of a slow mesh
_LEAST, _MOST, _MORE = 16 << 10, 256 << 10, 4 << 10  # bytes of a piece, and how many more the next one may have
_QUEUE = 0.005  # seconds that a piece may take longer than the quickest: what activations may come to wait
_RESTS = 3  # times as long as a piece took
_LONGEST_REST = 0.5  # seconds
_UNKNOWN = 0.1  # seconds that the first piece of a connection is expected to take


@attrs.define(eq=False)
class RightOfWay:
    """One node's. Its loop says when activations pass; the threads that send bulk ask, and take turns."""

    clock: Callable[[], float] = time.monotonic
    _until: float = attrs.field(default=-math.inf, init=False)
    _free_at: float = attrs.field(default=-math.inf, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def activations_pass(self) -> None:
        """Note that activations are sent, or have come."""
        self._until = self.clock() + _LINGERS

    @property
    def is_taken(self) -> bool:
        """Whether activations pass."""
        return self.clock() < self._until

    def claim(self, seconds: float) -> float:
        """Claim the link for bulk for so long, or return after how many seconds to ask again."""
        with self._lock:
            now = self.clock()
            if now < self._free_at:
                return self._free_at - now
            self._free_at = now + seconds
            return 0.0

    def rest(self, seconds: float) -> None:
        """Leave the link alone for so long from now on."""
        with self._lock:
            self._free_at = self.clock() + seconds


@attrs.define(eq=False)
class Courtesy:
    """One connection's: how large its next piece is, learnt from how long the last ones took to arrive."""

    way: RightOfWay
    piece: int = attrs.field(default=_LEAST, init=False)  # bytes
    _last: float = attrs.field(default=_UNKNOWN, init=False)  # seconds
    # Seconds: of the way there and back, and a small piece.
    _quickest: float = attrs.field(default=math.inf, init=False)

    def claim(self) -> float:
        """Claim the link for a piece, or return after how many seconds to ask again. One that gets stuck blocks nobody."""
        return self.way.claim((1 + _RESTS) * self._last)

    def arrived(self, seconds: float) -> None:
        """Note that the piece has arrived after so long."""
        self._last, self._quickest = seconds, min(self._quickest, seconds)
        has_waited = seconds > self._quickest + _QUEUE
        self.piece = max(_LEAST, self.piece // 2) if has_waited else min(_MOST, self.piece + _MORE)
        self.way.rest(min(_LONGEST_REST, _RESTS * seconds))
