"""Finds where JSON objects and lists end in text that comes in pieces, without decoding them again and again."""

import re

import attrs

from meshnode.text.tool_calls.base import NotACall

__all__ = ["JsonExtent"]

_SEPARATORS = "; \t\r\n"
_STRUCTURE = re.compile(r'["{}\[\]]')


@attrs.define(eq=False)
class JsonExtent:
    """A stretch of `begins` characters and then a JSON value, or `several` with white space or semicolons between them.

    With `only_calls` a value whose first key is none of a call's ends the search with NotACall.
    """

    begins: int = 0
    several: bool = False
    only_calls: bool = False
    _text: str = attrs.field(default="", init=False)
    _at: int = attrs.field(default=0, init=False)  # scanned so far
    _depth: int = attrs.field(default=0, init=False)
    _in_string: bool = attrs.field(default=False, init=False)
    _complete: int = attrs.field(default=0, init=False)  # end of the last whole value

    def push(self, text: str) -> int | None:
        """Take more; the stretch ends before the first character that neither continues nor separates values."""
        self._text += text
        if self.only_calls:
            self._check_first_key()
        if self._at < self.begins:
            if len(self._text) < self.begins:
                return None
            self._at = self.begins
        while self._at < len(self._text):
            if self._depth:
                at = self._at
                self._scan_value()
                if self._at == at:
                    return None  # what a backslash escapes is still to come
                if self._complete and not self.several:
                    return self._complete
                continue
            letter = self._text[self._at]
            if letter in "{[":
                self._depth, self._at = 1, self._at + 1
            elif letter in _SEPARATORS:
                self._at += 1
            elif self._complete:
                return self._complete
            else:
                raise NotACall(f"a call begins with an object or a list, not with {letter!r}")
        return None

    def flush(self) -> bool:
        """Say whether the last value is whole."""
        return bool(self._complete) and not self._depth

    def _scan_value(self) -> None:
        if self._in_string:
            self._skip_string()
            return
        found = _STRUCTURE.search(self._text, self._at)
        if found is None:
            self._at = len(self._text)
            return
        self._at = found.end()
        letter = found.group()
        if letter == '"':
            self._in_string = True
            self._skip_string()
        elif letter in "{[":
            self._depth += 1
        else:
            self._depth -= 1
            if not self._depth:
                self._complete = self._at

    def _skip_string(self) -> None:
        at, text = self._at, self._text
        while at < len(text):
            if text[at] == "\\":
                if at + 1 == len(text):
                    break  # what is escaped comes with the next piece
                at += 2
                continue
            if text[at] == '"':
                self._in_string = False
                at += 1
                break
            stops = [stop for stop in (text.find('"', at), text.find("\\", at)) if stop >= 0]
            at = min(stops, default=len(text))
        self._at = at

    def _check_first_key(self) -> None:
        rest = self._text[self.begins :].lstrip(_SEPARATORS)
        if len(rest) > 1 and not _begins_call(rest):
            raise NotACall("an object whose first key is none of a call's")


_FIRST_KEYS = tuple(f'{{"{key}"' for key in ("name", "type", "function", "parameters", "arguments", "id"))


def _begins_call(text: str) -> bool:
    compact = "".join(text[:200].split())
    compact = compact.removeprefix("[")
    return any(compact.startswith(key) or key.startswith(compact) for key in _FIRST_KEYS)
