"""DeepSeek: calls between tokens of its own, with the arguments in a fenced block (V3, R1) or without one (V3.1)."""

import re
from functools import partial

from meshnode.text.tool_calls.base import CallText, NotACall, Spelling, ToolFormat, UntilText, call_from, decoded

__all__ = ["DEEPSEEK", "DEEPSEEK_PLAIN"]

_BAR, _GAP = "\uff5c", "\u2581"


def _tag(*words: str) -> str:
    return f"<{_BAR}{_GAP.join(words)}{_BAR}>"


_ALL, _ALL_END = _tag("tool", "calls", "begin"), _tag("tool", "calls", "end")
_ONE, _ONE_END, _SEPARATOR = _tag("tool", "call", "begin"), _tag("tool", "call", "end"), _tag("tool", "sep")
_FENCED = re.compile(
    r"\s*(?:function)?\s*(?P<sep>S)(?P<name>[^\n]+)\n```(?:json)?\n(?P<json>.*)\n```\s*".replace("S", _SEPARATOR),
    re.DOTALL,
)
_PLAIN = re.compile(r"\s*(?P<name>[^\n<]+)S(?P<json>.*)".replace("S", _SEPARATOR), re.DOTALL)


def _calls(stretch: str) -> tuple[CallText, ...]:
    inner = stretch.removeprefix(_ALL).removesuffix(_ALL_END)
    pieces = [piece.partition(_ONE_END)[0] for piece in inner.split(_ONE)[1:]]
    if not pieces:
        raise NotACall("nothing was called")
    return tuple(_call(piece) for piece in pieces)


def _call(piece: str) -> CallText:
    found = _FENCED.fullmatch(piece) or _PLAIN.fullmatch(piece)
    if found is None:
        raise NotACall("a call has a name and arguments")
    return call_from({"name": found["name"].strip(), "arguments": decoded(found["json"].strip())})


DEEPSEEK = ToolFormat(
    name="deepseek",
    spelling=Spelling(
        head=f"{_ONE}function{_SEPARATOR}NAME\n```json\n",
        tail=f"\n```{_ONE_END}",
        before=_ALL,
        after=_ALL_END,
    ),
    openings=(_ALL,),
    region=partial(UntilText, _ALL_END),
    calls=_calls,
)
DEEPSEEK_PLAIN = ToolFormat(
    name="deepseek-plain",
    spelling=Spelling(head=f"{_ONE}NAME{_SEPARATOR}", tail=_ONE_END, before=_ALL, between="", after=_ALL_END),
    openings=(_ALL,),
    region=partial(UntilText, _ALL_END),
    calls=_calls,
)
