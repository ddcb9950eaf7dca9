"""Finds stop sequences in a stream of text, wherever the pieces were cut."""

from collections.abc import Sequence

import attrs

__all__ = ["StopMatcher"]


@attrs.define(eq=False)
class StopMatcher:
    """Emits text that can no longer be part of a stop sequence; holds back at most the longest one's length less one."""

    stops: Sequence[str]
    _held: str = attrs.field(default="", init=False)

    def push(self, text: str) -> tuple[str, str | None]:
        """Take text; return what may be shown and the stop sequence that was met, if one was.

        The match that ends first wins, and of those the one that begins first. After a match nothing more comes.
        """
        held = self._held + text
        found = min(((at + len(stop), at, stop) for stop in self.stops if (at := held.find(stop)) >= 0), default=None)
        if found is not None:
            self._held = ""
            return held[: found[1]], found[2]
        keep = max((_overlap(held, stop) for stop in self.stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], None

    def flush(self) -> str:
        """Return what was held back: the stream has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how long the longest end of `text` is that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
