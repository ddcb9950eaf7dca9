"""The messages of a chat request, flattened to what a template takes."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from meshnode.api.bodies import json_text
from meshnode.api.parameters import check_count
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, ToolCall

__all__ = ["Message", "flatten"]

_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an assistant called."""

    name: str
    arguments: dict[str, Any] = {}
    index: int | None = None
    description: str | None = None  # left in by clients that make it from the tool


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of an assistant's message, as the reply had it."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message."""

    role: str
    content: str | None = ""
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    name: str | None = None  # what tool_name was called before
    tool_call_id: str | None = None


def flatten(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Return the messages as the template takes them. Raises RequestError naming what is not supported, and where."""
    check_count("messages", messages, "tool_calls")
    open_calls: list[ToolCall] = []  # made and not answered, oldest first
    flat = []
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        role = _checked_role(message, at)
        if role == "tool":
            call = _answered(message, open_calls, at)
            open_calls.remove(call)
            flat.append(ChatMessage("tool", message.content or "", call.name, call_id=call.id))
            continue
        calls = tuple(
            ToolCall(
                call.id or f"call_{index}_{number}",
                call.function.name,
                json_text(
                    call.function.arguments,
                    f"the arguments of a call of {call.function.name[:80]!r}",
                    f"{at}.tool_calls[{number}]",
                ),
            )
            for number, call in enumerate(message.tool_calls or ())
        )
        open_calls += calls
        flat.append(ChatMessage(role, message.content or "", calls=calls, reasoning=message.thinking or ""))
    return tuple(flat)


def _checked_role(message: Message, at: str) -> Literal["system", "user", "assistant", "tool"]:
    if message.role not in _ROLES:
        raise RequestError(f"{message.role[:40]!r} is not a role; there are: {', '.join(_ROLES)}", param=f"{at}.role")
    if message.images:
        raise RequestError(f"'{at}.images' is not supported: no model of this node sees images", param=f"{at}.images")
    role = _ROLES[message.role]
    for field, whose in (("tool_calls", "assistant"), ("thinking", "assistant"), ("tool_name", "tool")):
        if getattr(message, field) and role != whose:
            raise RequestError(f"'{at}.{field}' belongs to messages of role {whose!r}", param=f"{at}.{field}")
    return role


def _answered(message: Message, open_calls: Sequence[ToolCall], at: str) -> ToolCall:
    """Return the call that a tool's message answers: by id, else the oldest by name, else the oldest."""
    name = message.tool_name or message.name
    for call in open_calls:
        if message.tool_call_id in (call.id, None, "") and (message.tool_call_id or name in (call.name, None, "")):
            return call
    raise RequestError(f"'{at}' answers no call of a message before it", param=at)
