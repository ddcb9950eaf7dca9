"""Input items: what a conversation consists of in Responses, and how a template gets it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, ToolCall

__all__ = ["Item", "as_items", "conversation", "listed"]

Item = Mapping[str, Any]
"""A JSON object with a type. What else it holds depends on the type; unknown fields are kept and sent back, as OpenAI does."""

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_TEXTS = ("input_text", "output_text", "text")


def as_items(given: str | Sequence[Item]) -> list[Item]:
    """Return input as items. Raises RequestError."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not given:
        raise RequestError("'input' must not be empty", param="input")
    return list(given)


def listed(item: Item) -> Item:
    """Return an item as a list of items has it: a message's content is parts there, whatever it came as."""
    content = item.get("content")
    if item.get("type", "message") != "message" or not isinstance(content, str):
        return item
    kind = "output_text" if item.get("role") == "assistant" else "input_text"
    part: dict[str, object] = {"type": kind, "text": content}
    if kind == "output_text":
        part["annotations"] = []
    return {**item, "type": "message", "content": [part]}


def conversation(items: Sequence[Item], instructions: str | None) -> tuple[ChatMessage, ...]:
    """Return the messages. Raises RequestError naming what is not supported, and where."""
    called: dict[str, str] = {}
    messages = [ChatMessage("system", instructions)] if instructions else []
    reasoning = ""
    for index, item in enumerate(items):
        at = f"input[{index}]"
        kind = item.get("type", "message")
        match kind:
            case "message":
                message = _message(item, at)
            case "reasoning":
                reasoning = _reasoning(item)
                continue
            case "function_call":
                message = _call(item, at)
                called[message.calls[0].id] = message.calls[0].name
            case "function_call_output":
                message = _result(item, at, called)
            case _:
                raise RequestError(
                    f"items of type {str(kind)[:40]!r} are not supported by this node", param=f"{at}.type"
                )
        if message.role == "assistant":
            message, reasoning = attrs.evolve(message, reasoning=reasoning), ""
        _append(messages, message)
    return tuple(messages)


def _append(messages: list[ChatMessage], message: ChatMessage) -> None:
    """Add a message; what an assistant said and called in one go is one message."""
    last = messages[-1] if messages else None
    if last is not None and message.calls and last.role == "assistant":
        messages[-1] = attrs.evolve(last, calls=last.calls + message.calls)
    else:
        messages.append(message)


def _message(item: Item, at: str) -> ChatMessage:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{str(role)[:40]!r} is not a role; there are: {', '.join(_ROLES)}", param=f"{at}.role")
    return ChatMessage(_ROLES[role], _text(item.get("content"), f"{at}.content"))


def _text(content: object, at: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"'{at}' is a text or a list of parts", param=at)
    texts = []
    for index, part in enumerate(content):
        match part:
            case {"type": str(kind), "text": str(text)} if kind in _TEXTS:
                texts.append(text)
            case _:
                shown = part.get("type") if isinstance(part, dict) else part
                raise RequestError(
                    f"parts of type {str(shown)[:40]!r} are not supported by this node; 'input_text' is",
                    param=f"{at}[{index}].type",
                )
    return "".join(texts)


def _reasoning(item: Item) -> str:
    parts = item.get("content") or item.get("summary") or []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _call(item: Item, at: str) -> ChatMessage:
    match item:
        case {"call_id": str(call_id), "name": str(name), "arguments": str(arguments)}:
            return ChatMessage("assistant", "", calls=(ToolCall(call_id, name, arguments),))
    raise RequestError("a function_call has 'call_id', 'name' and 'arguments', all texts", param=at)


def _result(item: Item, at: str, called: Mapping[str, str]) -> ChatMessage:
    call_id = item.get("call_id")
    if not isinstance(call_id, str) or call_id not in called:
        raise RequestError(f"'{at}.call_id' names no call before it", param=f"{at}.call_id")
    return ChatMessage("tool", _text(item.get("output"), f"{at}.output"), called[call_id], call_id=call_id)
