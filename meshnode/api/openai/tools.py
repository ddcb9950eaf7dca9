"""Tools, the choice among them, and the form of an answer, as OpenAI writes them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import attrs
import msgspec

from meshnode.api.bodies import json_text, named
from meshnode.api.left_out import tools_left_out
from meshnode.errors import RequestError
from meshnode.types.conversation import OutputFormat, Tool, ToolMode, ToolUse

__all__ = [
    "ToolEntry",
    "check_tools",
    "described",
    "function_tools",
    "functions_among",
    "others_among",
    "output_format",
    "tool_use",
]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MAX_TOOLS = 512
_MODES = {"none": ToolMode.NONE, "auto": ToolMode.AUTO, "required": ToolMode.REQUIRED}
_Tool = TypeVar("_Tool", bound=msgspec.Struct)

ToolEntry = dict[str, Any]
"""One entry of 'tools'. Those of other types than `function` run elsewhere, and have fields of their own."""


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function's name and what it takes."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | bool | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of 'tools' that is a function."""

    type: Literal["function"]
    function: Function


def functions_among(entries: Sequence[ToolEntry], kind: type[_Tool]) -> Iterator[tuple[str, _Tool]]:
    """Yield the functions, each with its place. Raises RequestError."""
    for index, entry in enumerate(entries):
        at = f"tools[{index}]"
        if not isinstance(entry.get("type"), str):
            raise RequestError(
                f"'{at}.type' is needed, and is a text; 'function' is what can be run", param=f"{at}.type"
            )
        if entry["type"] == "function":
            try:
                yield at, msgspec.convert(entry, kind)
            except msgspec.ValidationError as error:
                raise named(str(error), at) from error


def others_among(entries: Sequence[ToolEntry]) -> tuple[str, ...]:
    """Return the warning about tools of types that nobody here can run: the model is not shown them."""
    return tools_left_out(entry.get("type") for entry in entries if entry.get("type") != "function")


def function_tools(entries: Sequence[ToolEntry]) -> tuple[Tool, ...]:
    """Return the tools. Raises RequestError."""
    found = []
    for at, tool in functions_among(entries, FunctionTool):
        function = tool.function
        schema = {"type": "object", "properties": {}} if function.parameters is None else function.parameters
        parameters = json_text(schema, f"the parameters of tool {function.name[:80]!r}", f"{at}.function.parameters")
        found.append(Tool(function.name, function.description or "", parameters, bool(function.strict)))
    check_tools(found)
    return tuple(found)


def described(description: str | None, what: str, told: object) -> str:
    """Return a description with what else is said of a tool, which no template has a place for."""
    if not told:
        return description or ""
    text = json_text(told, "what is said of a tool", "tools")
    return f"{description}\n{what}: {text}" if description else f"{what}: {text}"


def check_tools(tools: Sequence[Tool]) -> None:
    """Refuse too many tools, names that no format can carry, and names that stand for two tools. Raises RequestError."""
    if len(tools) > _MAX_TOOLS:
        raise RequestError(f"'tools' has {len(tools)} entries; {_MAX_TOOLS} are allowed", param="tools")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if not _NAME.fullmatch(tool.name):
            raise RequestError(
                f"a tool's name has 1 to 128 letters, digits, '_', '-' and '.'; {tool.name[:40]!r} is none",
                param=f"tools[{index}]",
            )
        if tool.name in names:
            raise RequestError(f"two tools are called {tool.name!r}", param=f"tools[{index}]")
        names.add(tool.name)


def tool_use(tools: tuple[Tool, ...], choice: object, *, parallel: bool | None) -> ToolUse:
    """Return how tools may be used. `choice` is what 'tool_choice' holds. Raises RequestError."""
    use = ToolUse(tools, parallel=parallel is not False)
    match choice:
        case None:
            pass
        case str(mode) if mode in _MODES:
            use = attrs.evolve(use, mode=_MODES[mode])
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            use = attrs.evolve(use, mode=ToolMode.REQUIRED, named=name)
        case {"type": "allowed_tools", "allowed_tools": {"mode": str(mode), "tools": [*allowed]}} if mode in _MODES:
            use = attrs.evolve(use, tools=_allowed(tools, allowed), mode=_MODES[mode])
        case {"type": "allowed_tools", "mode": str(mode), "tools": [*allowed]} if mode in _MODES:
            use = attrs.evolve(use, tools=_allowed(tools, allowed), mode=_MODES[mode])
        case {"type": str(kind)} if kind not in ("function", "allowed_tools"):
            raise RequestError(
                f"'tool_choice' names a tool of type {kind[:40]!r}, which this node cannot run", param="tool_choice"
            )
        case _:
            raise RequestError(
                "'tool_choice' is 'none', 'auto', 'required', a function by name, or allowed_tools", param="tool_choice"
            )
    if use.mode is ToolMode.REQUIRED and not use.tools:
        raise RequestError(
            "'tool_choice' asks for a call, and there are no 'tools' that this node can run", param="tool_choice"
        )
    if use.named is not None and use.named not in {tool.name for tool in use.tools}:
        raise RequestError(
            f"'tool_choice' names {use.named[:80]!r}, which is none of the functions in 'tools'", param="tool_choice"
        )
    return use


def _allowed(tools: Sequence[Tool], allowed: Sequence[object]) -> tuple[Tool, ...]:
    names = {name for item in allowed if (name := _name_of(item)) is not None}
    known = {tool.name for tool in tools}
    if len(names) < len(allowed) or not names <= known:
        raise RequestError(
            "'tool_choice' allows something that is none of the tools this node can run", param="tool_choice"
        )
    return tuple(tool for tool in tools if tool.name in names)


def _name_of(item: object) -> str | None:
    match item:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return name
    return None


def output_format(given: Mapping[str, Any] | None, name: str = "response_format") -> OutputFormat:
    """Return the form that an answer must have. Raises RequestError."""
    if given is None:
        return OutputFormat()
    inner = given.get("json_schema")
    flat = {**given, **inner} if isinstance(inner, dict) else dict(given)
    kind, extra = (
        flat.get("type"),
        sorted(set(flat) - {"type", "json_schema", "name", "description", "schema", "strict"}),
    )
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError(f"{name!r} is of type 'text', 'json_object' or 'json_schema'", param=name)
    if extra or (kind != "json_schema" and len(flat) > 1):
        raise RequestError(
            f"{name!r} of type {kind} does not take {', '.join(extra or sorted(set(flat) - {'type'}))}", param=name
        )
    if kind != "json_schema":
        return OutputFormat(kind)
    if not isinstance(flat.get("schema"), dict):
        raise RequestError(f"{name!r} of type json_schema needs a 'schema'", param=name)
    return OutputFormat("json_schema", json_text(flat["schema"], "the schema of the answer", name))
