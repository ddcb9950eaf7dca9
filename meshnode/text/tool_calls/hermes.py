"""Calls between <tool_call> and </tool_call>: Hermes, Qwen, and every model whose template knows no tools."""

from functools import partial

from meshnode.text.tool_calls.base import CallText, NotACall, Spelling, ToolFormat, UntilText, call_from, decoded

__all__ = ["HERMES"]

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"


def _calls(stretch: str) -> tuple[CallText, ...]:
    inner = stretch.removeprefix(_OPENING).removesuffix(_CLOSING).strip()
    if inner.startswith("```"):
        inner = inner.strip("`").removeprefix("json").strip()
    value = decoded(inner)
    calls = tuple(call_from(item) for item in value) if isinstance(value, list) else (call_from(value),)
    if not calls:
        raise NotACall("an empty list of calls")
    return calls


HERMES = ToolFormat(
    name="hermes",
    spelling=Spelling(head=f'{_OPENING}\n{{"name": "NAME", "arguments": ', tail=f"}}\n{_CLOSING}"),
    openings=(_OPENING,),
    region=partial(UntilText, _CLOSING),
    calls=_calls,
)
