"""What one node remembers of gaps, and of what it did about them: so that it tries nothing in vain, and undoes nothing."""

from collections.abc import Callable

import attrs

from meshnode.placement.models import Segment
from meshnode.placement.view import MeshState
from meshnode.types.ids import ModelId

__all__ = ["Recollection"]

_LET_GO = 86400.0  # seconds in which what this node has let go is left to others
_LAST_RESORT = 3600.0  # seconds after which it is fetched again all the same, when nobody else does
_LOST = 1800.0  # seconds that a part is held by nobody here until it is fetched from outside: who had it may come back


@attrs.define(eq=False)
class Recollection:
    """Of one node. Times are those of `trio.current_time()`, or of whoever plays it."""

    patience: float = 1800.0  # seconds before a segment that could not be fetched is tried again
    _failed: dict[Segment, float] = attrs.field(factory=dict, init=False)  # when
    _let_go: dict[Segment, float] = attrs.field(factory=dict, init=False)  # when
    _open: dict[Segment, float] = attrs.field(factory=dict, init=False)  # since when, of gaps that could be filled
    _lost: frozenset[Segment] = attrs.field(default=frozenset(), init=False)  # of these, what has to come from outside

    def note_failed(self, segment: Segment, now: float) -> None:
        """Note that a segment could not be fetched."""
        self._failed[segment] = now

    def note_let_go(self, segment: Segment, now: float) -> None:
        """Note that a segment was dropped."""
        self._let_go[segment] = now

    def look(
        self, state: MeshState, now: float, comes_from_outside: Callable[[ModelId], bool] = lambda _model: False
    ) -> None:
        """Look at the gaps there are; to be called before anything is decided."""
        self._failed = {segment: at for segment, at in self._failed.items() if now - at < self.patience}
        self._let_go = {segment: at for segment, at in self._let_go.items() if now - at < _LET_GO}
        self._open = {
            segment: self._open.get(segment, now)
            for segment, _ in state.gaps
            if segment not in self._failed
            and (state.sources(segment) > 0 or (state.is_lost(segment) and comes_from_outside(segment.model)))
        }
        self._lost = frozenset(segment for segment in self._open if state.is_lost(segment))

    def can_fetch(self, segment: Segment, now: float) -> bool:
        """Whether a gap can be filled, has not failed a moment ago, and is not for others to fill, or for who may come back."""
        least = max(_LAST_RESORT * (segment in self._let_go), _LOST * (segment in self._lost))
        return segment in self._open and self.waited(segment, now) >= least

    def waited(self, segment: Segment, now: float) -> float:
        """Return for how many seconds a gap has been open that somebody could have filled."""
        return now - self._open.get(segment, now)
