"""What all formats of tool calls have in common."""

import json
from collections.abc import Callable
from typing import Protocol

import attrs
import msgspec

__all__ = ["CallText", "NotACall", "Region", "Spelling", "ToolFormat", "UntilText", "call_from", "decoded"]


class NotACall(ValueError):
    """The text looked like a call and is none."""


@attrs.frozen
class CallText:
    """A call as the model wrote it."""

    name: str
    arguments: str  # the text of a JSON object


class Region(Protocol):
    """Finds the end of a stretch of text that may hold calls."""

    def push(self, text: str) -> int | None:
        """Take more; return how many characters of all that was taken belong to the stretch, once that is known.

        Raises NotACall as soon as it can hold none.
        """
        ...

    def flush(self) -> bool:
        """Say whether what was taken is a whole stretch, now that nothing more comes."""
        ...


@attrs.frozen
class Spelling:
    """How calls are written: `before`, then for each call `head` with its name, the arguments and `tail`; then `after`."""

    head: str  # with NAME where the name goes
    tail: str
    before: str = ""
    between: str = "\n"
    after: str = ""

    def written(self, call: CallText) -> str:
        """Return one call as text, without what stands before and after them all."""
        return self.head.replace("NAME", call.name) + call.arguments + self.tail


@attrs.frozen
class ToolFormat:
    """How a family of models writes calls."""

    name: str
    spelling: Spelling
    openings: tuple[str, ...]  # each begins a stretch of calls
    region: Callable[[], Region]  # what finds its end, the opening included
    calls: Callable[[str], tuple[CallText, ...]]  # the calls of a whole stretch; raises NotACall
    bare: Callable[[], Region] | None = None  # for an answer that begins with a JSON object
    short_ids: bool = False  # its templates take ids of nine letters and digits

    @property
    def markers(self) -> str:
        """All texts of it that a vocabulary may have control tokens for."""
        spelling = self.spelling
        return " ".join(
            (*self.openings, spelling.before, spelling.head, spelling.tail, spelling.between, spelling.after)
        )


@attrs.define(eq=False)
class UntilText:
    """A stretch that ends with a text of its own."""

    closing: str
    _taken: int = attrs.field(default=0, init=False)
    _tail: str = attrs.field(default="", init=False)  # what may be the closing's beginning

    def push(self, text: str) -> int | None:
        """Look for the closing text, also across the border of two pieces."""
        window = self._tail + text
        at = window.find(self.closing)
        if at >= 0:
            return self._taken - len(self._tail) + at + len(self.closing)
        self._taken += len(text)
        keep = len(self.closing) - 1
        self._tail = window[-keep:] if keep else ""
        return None

    def flush(self) -> bool:
        """Say that it is not: its closing text has not come."""
        return False


def call_from(value: object) -> CallText:
    """Read a call from a JSON object with a name and arguments, under any of the keys in use. Raises NotACall."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise NotACall("a call is a JSON object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise NotACall("a call has a name")
    arguments = next((value[key] for key in ("arguments", "parameters", "args") if key in value), None)
    if isinstance(arguments, str):
        arguments = decoded(arguments)
    if not isinstance(arguments, dict | None):
        raise NotACall("a call's arguments are a JSON object")
    return CallText(name, json.dumps(arguments or {}, ensure_ascii=False))


def decoded(text: str) -> object:
    """Decode JSON. Raises NotACall."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotACall(f"not JSON: {error}") from error
