"""Tools and the choice among them, as Anthropic writes them."""

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import msgspec

from meshnode.api.anthropic.wrong import wrong_at, wrong_value
from meshnode.api.bodies import json_text
from meshnode.api.left_out import tools_left_out
from meshnode.api.openai.tools import check_tools, described
from meshnode.types.conversation import Tool, ToolMode, ToolUse

__all__ = ["ToolChoice", "ToolEntry", "client_tools", "server_tools", "tool_use"]

_MODES = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "none": ToolMode.NONE}


ToolEntry = dict[str, Any]
"""One entry of 'tools'. Those of other types than `custom` run at Anthropic, with fields of their own."""


class ClientTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that whoever asks runs. The model knows all of them from the beginning, and nothing else here calls them."""

    name: str
    input_schema: dict[str, Any] | bool
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    cache_control: Any = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[dict[str, Any]] | None = None  # told to the model with the description


def client_tools(entries: Sequence[ToolEntry]) -> tuple[Tool, ...]:
    """Return the tools that the client runs. Raises RequestError."""
    found = []
    for index, entry in enumerate(entries):
        if not isinstance(entry.get("type"), str | None):
            raise wrong_at(f"tools.{index}.type", "is a string")
        if _is_ours(entry):
            try:
                tool = msgspec.convert(entry, ClientTool)
            except msgspec.ValidationError as error:
                raise wrong_value(str(error), f"tools.{index}") from error
            schema = json_text(
                tool.input_schema, f"the parameters of tool {tool.name[:80]!r}", f"tools.{index}.input_schema"
            )
            told = described(tool.description, "Examples of its input", tool.input_examples)
            found.append(Tool(tool.name, told, schema, bool(tool.strict)))
    check_tools(found)
    return tuple(found)


def server_tools(entries: Sequence[ToolEntry]) -> tuple[str, ...]:
    """Return the warning about those that only Anthropic's servers run, or call: the model is not shown them."""
    return tools_left_out(entry.get("name") or entry.get("type") for entry in entries if not _is_ours(entry))


def _is_ours(entry: ToolEntry) -> bool:
    callers = entry.get("allowed_callers")
    return entry.get("type") in (None, "custom") and (not isinstance(callers, list) or "direct" in callers)


class ToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def tool_use(tools: tuple[Tool, ...], choice: ToolChoice | None) -> ToolUse:
    """Return how tools may be used. Raises RequestError."""
    if choice is None:
        return ToolUse(tools)
    use = ToolUse(tools, parallel=not choice.disable_parallel_tool_use)
    if choice.type == "tool":
        if choice.name not in {tool.name for tool in tools}:
            raise wrong_at("tool_choice.name", f"{str(choice.name)[:80]!r} is none of the tools that this node can run")
        return attrs.evolve(use, mode=ToolMode.REQUIRED, named=choice.name)
    if choice.name is not None:
        raise wrong_at("tool_choice.name", f"goes with the type 'tool', not with {choice.type!r}")
    if choice.type == "any" and not tools:
        raise wrong_at("tool_choice", "asks for a call, and there are no tools that this node can run")
    return attrs.evolve(use, mode=_MODES[choice.type])
