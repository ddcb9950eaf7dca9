"""The messages of a chat request, flattened to what a template takes."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from meshnode.api.hints import CacheMark
from meshnode.api.parameters import check_count
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, ToolCall

__all__ = ["Message", "Part", "flatten"]

_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part of a message. Only text is taken; the fields of other kinds are there to refuse them by their type."""

    type: str
    text: str | None = None
    prompt_cache_breakpoint: CacheMark = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an assistant called."""

    name: str
    arguments: str = "{}"


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of an assistant's message, as the reply had it."""

    id: str
    function: CalledFunction
    type: str = "function"
    index: int | None = None  # left in by clients that put streams together


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. The last row is what SDKs send back with an answer of ours; it must not say anything."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Call] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: Any = None
    annotations: Any = None
    function_call: Any = None


def flatten(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Return the messages as the template takes them. Raises RequestError naming what is not supported, and where."""
    if not messages:
        raise RequestError("'messages' must not be empty", param="messages")
    check_count("messages", messages, "content", "tool_calls")
    called: dict[str, str] = {}  # id of a call: the function's name
    flat = []
    for index, message in enumerate(messages):
        flat.append(_flat(message, f"messages[{index}]", called))
        called |= {call.id: call.name for call in flat[-1].calls}
    return tuple(flat)


def _flat(message: Message, at: str, called: dict[str, str]) -> ChatMessage:
    if message.role == "function":
        raise RequestError("messages of role 'function' are not supported; use 'tool'", param=f"{at}.role")
    if message.role not in _ROLES:
        raise RequestError(f"{message.role[:40]!r} is not a role; there are: {', '.join(_ROLES)}", param=f"{at}.role")
    role = _ROLES[message.role]
    for field in ("refusal", "audio", "annotations", "function_call"):
        if getattr(message, field):
            raise RequestError(f"'{at}.{field}' is not supported by this node", param=f"{at}.{field}")
    for field, whose in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
        if getattr(message, field) and role != whose:
            raise RequestError(f"'{at}.{field}' belongs to messages of role {whose!r}", param=f"{at}.{field}")
    calls = tuple(_call(call, f"{at}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls or []))
    content = _content(message, at, may_be_empty=bool(calls))
    if role != "tool":
        return ChatMessage(role, content, message.name, calls, reasoning=message.reasoning_content or "")
    if message.tool_call_id not in called:
        raise RequestError(f"'{at}.tool_call_id' names no call of a message before it", param=f"{at}.tool_call_id")
    return ChatMessage(role, content, called[message.tool_call_id], call_id=message.tool_call_id)


def _content(message: Message, at: str, *, may_be_empty: bool) -> str:
    if message.content is None or message.content == []:
        if may_be_empty:
            return ""
        raise RequestError(f"'{at}.content' is needed and not there", param=f"{at}.content")
    if isinstance(message.content, str):
        return message.content
    return "".join(_text(part, f"{at}.content[{index}]") for index, part in enumerate(message.content))


def _text(part: Part, at: str) -> str:
    if part.type != "text":
        raise RequestError(
            f"parts of type {part.type[:40]!r} are not supported by this node; 'text' is", param=f"{at}.type"
        )
    for name in ("image_url", "input_audio", "file", "refusal"):
        if getattr(part, name) is not None:
            raise RequestError(f"'{at}.{name}' does not belong to a part of type 'text'", param=f"{at}.{name}")
    if part.text is None:
        raise RequestError(f"'{at}.text' is needed and not there", param=f"{at}.text")
    return part.text


def _call(call: Call, at: str) -> ToolCall:
    if call.type != "function":
        raise RequestError(f"calls of type {call.type[:40]!r} are not supported; 'function' is", param=f"{at}.type")
    return ToolCall(call.id, call.function.name, call.function.arguments)
