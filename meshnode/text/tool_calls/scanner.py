"""Finds calls in an answer as its text comes, whatever the pieces."""

from collections.abc import Collection

import attrs

from meshnode.text.tool_calls.base import CallText, NotACall, Region, ToolFormat

__all__ = ["Scanned", "ToolScanner"]


@attrs.frozen
class Scanned:
    """What became certain: plain text, and whole calls."""

    text: str = ""
    calls: tuple[CallText, ...] = ()


@attrs.define(eq=False)
class ToolScanner:
    """One answer's. What looks like a call and is none, or calls no tool there is, comes out as the text it is.

    White space is held back until text follows it: before a call it is dropped. A call that is cut off is text.
    """

    format: ToolFormat
    names: Collection[str]  # of the tools
    _held: str = attrs.field(default="", init=False)  # white space, or what may become an opening
    _region: Region | None = attrs.field(default=None, init=False)
    _stretch: str = attrs.field(default="", init=False)  # what the region has taken
    _is_fresh: bool = attrs.field(default=True, init=False)  # nothing but white space so far
    _shown: list[str] = attrs.field(factory=list, init=False)
    _calls: list[CallText] = attrs.field(factory=list, init=False)
    _called: bool = attrs.field(default=False, init=False)

    def push(self, text: str) -> Scanned:
        """Take text; return what is certain now."""
        self._look_at(text)
        return self._found()

    def flush(self) -> Scanned:
        """Return what was held back: the answer has ended."""
        while self._region is not None:
            rest = self._take(len(self._stretch)) if self._region.flush() else self._give_up()
            self._look_at(rest)
        if self._held.strip() or not self._called:
            self._shown.append(self._held)
        self._held = ""
        return self._found()

    def _look_at(self, text: str) -> None:
        while text:
            text = self._in_text(text) if self._region is None else self._in_region(text)

    def _found(self) -> Scanned:
        found = Scanned("".join(self._shown), tuple(self._calls))
        self._shown.clear()
        self._calls.clear()
        return found

    def _in_text(self, text: str) -> str:
        """Take text outside of any stretch; return what is left to look at when one begins."""
        held, self._held = self._held + text, ""
        inner = held.lstrip()
        if not inner:
            self._held = held
            return ""
        if self._is_fresh and self.format.bare is not None and inner[0] in "{[":
            return self._begin(self.format.bare(), held[: len(held) - len(inner)], inner)
        found = min((at, opening) for opening in (*self.format.openings, "") if (at := _find(held, opening)) >= 0)
        if found[1]:
            return self._begin(self.format.region(), held[: found[0]], held[found[0] :])
        self._show_sure(held)
        return ""

    def _show_sure(self, held: str) -> None:
        """Show what can be no part of an opening, and hold back the rest."""
        keep = max(_overlap(held, opening) for opening in self.format.openings)
        sure = held[: len(held) - keep].rstrip()
        self._held = held[len(sure) :]
        self._shown.append(sure)
        self._is_fresh = self._is_fresh and not sure

    def _begin(self, region: Region, before: str, stretch: str) -> str:
        sure = before.rstrip()
        self._shown.append(sure)
        self._held = before[len(sure) :]  # white space: dropped if this is a call
        self._region, self._stretch, self._is_fresh = region, "", False
        return stretch

    def _in_region(self, text: str) -> str:
        """Take text inside a stretch; return what is left to look at behind its end."""
        assert self._region is not None
        self._stretch += text
        try:
            length = self._region.push(text)
        except NotACall:
            return self._give_up()
        return "" if length is None else self._take(length)

    def _take(self, length: int) -> str:
        """Read the calls of a whole stretch; return what is behind it."""
        try:
            calls = self.format.calls(self._stretch[:length])
        except NotACall:
            return self._give_up()
        if not all(call.name in self.names for call in calls):
            return self._give_up()
        rest, self._region, self._held, self._called = self._stretch[length:], None, "", True
        self._calls += calls
        return rest

    def _give_up(self) -> str:
        """Take the opening for text; return the rest, which may hold another one."""
        stretch, self._region = self._stretch, None
        opening = next((opening for opening in self.format.openings if stretch.startswith(opening)), stretch[:1])
        self._shown.append(self._held + opening)
        self._held = ""
        return stretch[len(opening) :]


def _find(text: str, opening: str) -> int:
    return text.find(opening) if opening else len(text)


def _overlap(text: str, opening: str) -> int:
    """Return how long the longest end of `text` is that begins `opening`."""
    for length in range(min(len(text), len(opening) - 1), 0, -1):
        if text.endswith(opening[:length]):
            return length
    return 0
