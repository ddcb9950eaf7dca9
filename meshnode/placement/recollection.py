"""What one node remembers of gaps, and of what it did about them: so that it tries nothing in vain, and undoes nothing."""

import attrs

from meshnode.placement.models import Segment
from meshnode.placement.view import MeshState

__all__ = ["Recollection"]

_LET_GO = 86400.0  # seconds in which what this node has let go is left to others
_LAST_RESORT = 3600.0  # seconds after which it is fetched again all the same, when nobody else does


@attrs.define(eq=False)
class Recollection:
    """Of one node. Times are those of `trio.current_time()`, or of whoever plays it."""

    patience: float = 1800.0  # seconds before a segment that could not be fetched is tried again
    _failed: dict[Segment, float] = attrs.field(factory=dict, init=False)  # when
    _let_go: dict[Segment, float] = attrs.field(factory=dict, init=False)  # when
    _open: dict[Segment, float] = attrs.field(factory=dict, init=False)  # since when, of gaps that could be filled

    def note_failed(self, segment: Segment, now: float) -> None:
        """Note that a segment could not be fetched."""
        self._failed[segment] = now

    def note_let_go(self, segment: Segment, now: float) -> None:
        """Note that a segment was dropped."""
        self._let_go[segment] = now

    def look(self, state: MeshState, now: float) -> None:
        """Look at the gaps there are; to be called before anything is decided."""
        self._failed = {segment: at for segment, at in self._failed.items() if now - at < self.patience}
        self._let_go = {segment: at for segment, at in self._let_go.items() if now - at < _LET_GO}
        self._open = {
            segment: self._open.get(segment, now)
            for segment, _ in state.gaps
            if segment not in self._failed and state.sources(segment) > 0
        }

    def can_fetch(self, segment: Segment, now: float) -> bool:
        """Whether a gap can be filled from somebody, has not failed a moment ago, and is not for others to fill."""
        return segment in self._open and (segment not in self._let_go or self.waited(segment, now) >= _LAST_RESORT)

    def waited(self, segment: Segment, now: float) -> float:
        """Return for how many seconds a gap has been open that somebody could have filled."""
        return now - self._open.get(segment, now)
