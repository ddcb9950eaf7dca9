"""Llama 3: an answer that is a JSON object with a name and parameters, after <|python_tag|> or without it."""

from functools import partial

from meshnode.text.tool_calls.base import CallText, Spelling, ToolFormat, call_from
from meshnode.text.tool_calls.json_extent import JsonExtent
from meshnode.text.tool_calls.values import values_in

__all__ = ["LLAMA"]

_OPENING = "<|python_tag|>"


def _calls(stretch: str) -> tuple[CallText, ...]:
    return tuple(call_from(value) for value in values_in(stretch.removeprefix(_OPENING)))


LLAMA = ToolFormat(
    name="llama",
    spelling=Spelling(head='{"name": "NAME", "parameters": ', tail="}", between="; "),
    openings=(_OPENING,),
    region=partial(JsonExtent, begins=len(_OPENING), several=True),
    calls=_calls,
    bare=partial(JsonExtent, several=True, only_calls=True),
)
