"""Mistral: [TOOL_CALLS] and a list of calls; since 2025 [TOOL_CALLS], a name, [ARGS], and the arguments."""

import re

import attrs

from meshnode.text.tool_calls.base import CallText, NotACall, Region, Spelling, ToolFormat, call_from
from meshnode.text.tool_calls.json_extent import JsonExtent
from meshnode.text.tool_calls.values import values_in

__all__ = ["MISTRAL", "MISTRAL_NAMED"]

_OPENING, _ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_NAMED = re.compile(r"\s*([A-Za-z0-9_.\-]{1,128})\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{)")
_MAX_HEAD = 256  # characters of a name and what stands around it


@attrs.define(eq=False)
class _Stretch:
    """The opening, perhaps a name, and one JSON value."""

    _text: str = attrs.field(default="", init=False)
    _json: Region | None = attrs.field(default=None, init=False)

    def push(self, text: str) -> int | None:
        if self._json is not None:
            return self._json.push(text)
        self._text += text
        rest = self._text[len(_OPENING) :].lstrip()
        if not rest:
            return None
        begins = len(self._text) - len(rest)
        if rest[0] not in "[{":
            at = rest.find("{")
            if at < 0 and len(rest) <= _MAX_HEAD:
                return None
            if at < 0 or not _NAMED.match(rest):
                raise NotACall("neither a list of calls nor a name")
            begins += at
        self._json = JsonExtent(begins=begins)
        return self._json.push(self._text)

    def flush(self) -> bool:
        return False


def _calls(stretch: str) -> tuple[CallText, ...]:
    inner = stretch.removeprefix(_OPENING)
    named = _NAMED.match(inner)
    if named is None:
        return tuple(call_from(value) for value in values_in(inner))
    (arguments,) = values_in(inner[named.end() :])
    return (call_from({"name": named.group(1), "arguments": arguments}),)


MISTRAL = ToolFormat(
    name="mistral",
    spelling=Spelling(head='{"name": "NAME", "arguments": ', tail="}", before=f"{_OPENING} [", between=", ", after="]"),
    openings=(_OPENING,),
    region=_Stretch,
    calls=_calls,
    short_ids=True,
)
MISTRAL_NAMED = ToolFormat(
    name="mistral-named",
    spelling=Spelling(head=f"{_OPENING}NAME{_ARGUMENTS}", tail="", between=""),
    openings=(_OPENING,),
    region=_Stretch,
    calls=_calls,
    short_ids=True,
)
