"""Tells a thinking model's reasoning from its answer: what stands between <think> and </think> at the beginning."""

import attrs

__all__ = ["CLOSING", "OPENING", "ReasoningSplitter", "Split", "may_think"]

OPENING, CLOSING = "<think>", "</think>"


def may_think(template: str) -> bool:
    """Say whether a chat template's model thinks before it answers."""
    return CLOSING in template


@attrs.frozen
class Split:
    """What became certain."""

    reasoning: str = ""
    text: str = ""


@attrs.define(eq=False)
class ReasoningSplitter:
    """One answer's. White space around the two texts is dropped."""

    is_thinking: bool = False  # the prompt has opened the reasoning already
    _is_over: bool = attrs.field(default=False, init=False)  # the answer proper has begun
    _has_text: bool = attrs.field(default=False, init=False)
    _has_reasoning: bool = attrs.field(default=False, init=False)
    _held: str = attrs.field(default="", init=False)

    @property
    def is_inside(self) -> bool:
        """Whether what comes now is reasoning."""
        return self.is_thinking and not self._is_over

    def push(self, text: str) -> Split:
        """Take text; return what is certain now."""
        if self._is_over:
            return Split(text=self._answer(text))
        held, self._held = self._held + text, ""
        if not self.is_thinking:
            inner = held.lstrip()
            if OPENING.startswith(inner):  # nothing yet, or a beginning of it
                self._held = held
                return Split()
            if not inner.startswith(OPENING):
                self._is_over = self._has_text = True
                return Split(text=held)
            self.is_thinking, held = True, inner[len(OPENING) :]
        reasoning, closing, rest = held.partition(CLOSING)
        if closing:
            self._is_over = True
            return Split(self._thought(reasoning.rstrip()), self._answer(rest))
        keep = next((n for n in range(min(len(held), len(CLOSING) - 1), 0, -1) if held.endswith(CLOSING[:n])), 0)
        sure = held[: len(held) - keep].rstrip()
        self._held = held[len(sure) :]
        return Split(self._thought(sure))

    def flush(self) -> Split:
        """Return what was held back: the answer has ended."""
        held, self._held = self._held, ""
        if self.is_thinking and not self._is_over:
            return Split(self._thought(held.rstrip()))
        return Split(text=held)

    def _answer(self, text: str) -> str:
        shown = text if self._has_text else text.lstrip()
        self._has_text = self._has_text or bool(shown)
        return shown

    def _thought(self, text: str) -> str:
        shown = text if self._has_reasoning else text.lstrip()
        self._has_reasoning = self._has_reasoning or bool(shown)
        return shown
