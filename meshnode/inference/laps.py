"""How far the ring of one attempt turns by itself: the workers hand tokens on, and the coordinator moves the end."""

import attrs

__all__ = ["Laps"]

_WINDOW = 64
"""Tokens that the workers may be ahead of the reader: enough for the end to be moved on in good time by way of the daemons."""


@attrs.define(eq=False)
class Laps:
    """The coordinator's view. Positions are those of rows: that of a token is fed to compute the next one."""

    stages: int
    most: int  # position of the first row that is never needed: that of the last token
    until: int = attrs.field(default=0, init=False)  # rows before this position go round by themselves
    _joined: set[int] = attrs.field(factory=set, init=False)

    def joined(self, index: int) -> bool:
        """Note that the worker of a stage is connected to both of its neighbours; return whether that is new."""
        is_new = index not in self._joined
        self._joined.add(index)
        return is_new

    @property
    def is_whole(self) -> bool:
        """Whether the ring can turn."""
        return len(self._joined) == self.stages

    def begin(self, position: int) -> int:
        """Return up to where the row at `position` and those after it may go round; 0: it goes by way of the daemons."""
        end = min(self.most, position + _WINDOW)
        self.until = end if self.is_whole and end > position + 1 else 0
        return self.until

    def move_on(self, position: int) -> int:
        """Return how many more rows may go round, now that the one at `position` does; many at a time, or none."""
        end = min(self.most, position + _WINDOW)
        more = end - self.until if end - self.until >= _WINDOW // 2 or end == self.most else 0
        self.until += more
        return more
