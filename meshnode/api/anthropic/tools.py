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


class ToolEntry(msgspec.Struct, frozen=True):
    """One entry of 'tools'. Those of other types than `custom` run at Anthropic, with fields of their own."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | bool | None = None
    strict: bool | None = None
    cache_control: Any = None

    @property
    def is_ours(self) -> bool:
        """Whether whoever asks runs it."""
        return self.type in (None, "custom")


def client_tools(entries: Sequence[ToolEntry]) -> tuple[Tool, ...]:
    """Return the tools that the client runs. Raises RequestError."""
    found = []
    for index, entry in enumerate(entries):
        if entry.is_ours:
            if entry.input_schema is None:
                raise RequestError(f"tools.{index}.input_schema: is needed and not there", param=f"tools.{index}")
            schema = msgspec.json.encode(entry.input_schema).decode()
            found.append(Tool(entry.name, entry.description or "", schema, bool(entry.strict)))
    check_tools(found)
    return tuple(found)


def server_tools(entries: Sequence[ToolEntry]) -> tuple[str, ...]:
    """Return the names of those that only Anthropic's servers run; they are left out, and the reply says so."""
    return tuple(entry.name or str(entry.type) for entry in entries if not entry.is_ours)


def tool_use(tools: tuple[Tool, ...], choice: Mapping[str, Any] | None) -> ToolUse:
    """Return how tools may be used. Raises RequestError."""
    if choice is None:
        return ToolUse(tools)
    kind, name = choice.get("type"), choice.get("name")
    use = ToolUse(tools, parallel=not choice.get("disable_parallel_tool_use"))
    unknown = sorted(set(choice) - {"type", "name", "disable_parallel_tool_use"})
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
