"""Tools and the choice among them, as Anthropic writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from meshnode.api.openai.tools import check_tools
from meshnode.errors import RequestError
from meshnode.types.conversation import Tool, ToolMode, ToolUse

__all__ = ["ToolEntry", "client_tools", "server_tools", "tool_use"]

_MODES = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "none": ToolMode.NONE}


ToolEntry = dict[str, Any]
"""One entry of 'tools'. Those of other types than `custom` run at Anthropic, with fields of their own."""


class ClientTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that whoever asks runs. The last five say when Anthropic's servers show or stream it, and change no answer here."""

    name: str
    input_schema: dict[str, Any] | bool
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    cache_control: Any = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[Any] | None = None


def client_tools(entries: Sequence[ToolEntry]) -> tuple[Tool, ...]:
    """Return the tools that the client runs. Raises RequestError."""
    found = []
    for index, entry in enumerate(entries):
        if _is_ours(entry):
            try:
                tool = msgspec.convert(entry, ClientTool)
            except msgspec.ValidationError as error:
                raise RequestError(f"tools.{index}: {error}", param=f"tools.{index}") from error
            schema = msgspec.json.encode(tool.input_schema).decode()
            found.append(Tool(tool.name, tool.description or "", schema, bool(tool.strict)))
    check_tools(found)
    return tuple(found)


def server_tools(entries: Sequence[ToolEntry]) -> tuple[str, ...]:
    """Return the names of those that only Anthropic's servers run; they are left out, and the reply says so."""
    names = (str(entry.get("name") or entry.get("type")) for entry in entries if not _is_ours(entry))
    return tuple(dict.fromkeys(names))


def _is_ours(entry: ToolEntry) -> bool:
    return entry.get("type") in (None, "custom")


def tool_use(tools: tuple[Tool, ...], choice: Mapping[str, Any] | None) -> ToolUse:
    """Return how tools may be used. Raises RequestError."""
    if choice is None:
        return ToolUse(tools)
    kind, name = choice.get("type"), choice.get("name")
    use = ToolUse(tools, parallel=not choice.get("disable_parallel_tool_use"))
    known = {"type", "disable_parallel_tool_use", *(("name",) if kind == "tool" else ())}
    unknown = sorted(set(choice) - known)
    if unknown:
        raise RequestError(f"tool_choice.{unknown[0][:40]}: is not known", param="tool_choice")
    if kind == "tool":
        if name not in {tool.name for tool in tools}:
            raise RequestError(f"tool_choice.name: {str(name)[:80]!r} is none of the tools", param="tool_choice")
        return attrs.evolve(use, mode=ToolMode.REQUIRED, named=str(name))
    if kind not in _MODES:
        raise RequestError("tool_choice.type: is auto, any, tool or none", param="tool_choice")
    if kind == "any" and not tools:
        raise RequestError("tool_choice: asks for a call, and there are no tools", param="tool_choice")
    return attrs.evolve(use, mode=_MODES[str(kind)])
