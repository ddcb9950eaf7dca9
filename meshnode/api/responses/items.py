"""Input items: what a conversation consists of in Responses, and how a template gets it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import msgspec

from meshnode.api.bodies import named
from meshnode.api.parameters import check_count
from meshnode.api.responses.inputs import INPUTS, Call, CallOutput, Message, Part, Reasoning
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, ToolCall

__all__ = ["Item", "as_items", "conversation", "listed"]

Item = Mapping[str, Any]
"""A JSON object with a type, kept and listed as it came."""

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


def conversation(items: Sequence[Item], instructions: str | None, *, kept: int = 0) -> tuple[ChatMessage, ...]:
    """Return the messages. Raises RequestError naming what is not supported, and where.

    The first `kept` items are not of this request's input: they are those of the answers before it.
    """
    check_count("input", items, "content", "summary", "output")
    called: dict[str, str] = {}
    messages = [ChatMessage("system", instructions)] if instructions else []
    reasoning = ""
    for index, item in enumerate(items):
        at = f"input[{index - kept}]" if index >= kept else "previous_response_id"
        match _typed(item, at):
            case Message() as said:
                message = _message(said, at)
            case Reasoning() as thought:
                reasoning = "".join(part.text for part in thought.content or thought.summary or ())
                continue
            case Call() as call:
                name = call.name if call.namespace is None else f"{call.namespace}.{call.name}"
                message = ChatMessage("assistant", "", calls=(ToolCall(call.call_id, name, call.arguments),))
                called[call.call_id] = name
            case result:  # of a call
                message = _result(result, at, called)
        if message.role == "assistant":
            message, reasoning = attrs.evolve(message, reasoning=reasoning), ""
        _append(messages, message)
    return tuple(messages)


def _typed(item: Item, at: str) -> Message | Reasoning | Call | CallOutput:
    kind = item.get("type", "message")
    if not isinstance(kind, str) or kind not in INPUTS:
        raise RequestError(f"items of type {str(kind)[:40]!r} are not supported by this node", param=f"{at}.type")
    try:
        return msgspec.convert(item, INPUTS[kind])
    except msgspec.ValidationError as error:
        raise named(str(error), at) from error


def _append(messages: list[ChatMessage], message: ChatMessage) -> None:
    """Add a message; what an assistant said and called in one go is one message."""
    last = messages[-1] if messages else None
    if last is not None and message.calls and last.role == "assistant":
        messages[-1] = attrs.evolve(last, calls=last.calls + message.calls)
    else:
        messages.append(message)


def _message(message: Message, at: str) -> ChatMessage:
    if message.role not in _ROLES:
        raise RequestError(f"{message.role[:40]!r} is not a role; there are: {', '.join(_ROLES)}", param=f"{at}.role")
    return ChatMessage(_ROLES[message.role], _text(message.content, f"{at}.content"))


def _text(content: str | Sequence[Part], at: str) -> str:
    if isinstance(content, str):
        return content
    return "".join(_words(part, f"{at}[{index}]") for index, part in enumerate(content))


def _words(part: Part, at: str) -> str:
    if part.type not in _TEXTS:
        raise RequestError(
            f"parts of type {part.type[:40]!r} are not supported by this node; 'input_text' is", param=f"{at}.type"
        )
    for name in ("refusal", "image_url", "file_id", "file_data", "file_url", "filename", "detail", "input_audio"):
        if getattr(part, name) is not None:
            raise RequestError(f"'{at}.{name}' does not belong to a part of type {part.type!r}", param=f"{at}.{name}")
    if part.text is None:
        raise RequestError(f"'{at}.text' is needed and not there", param=f"{at}.text")
    return part.text


def _result(result: CallOutput, at: str, called: Mapping[str, str]) -> ChatMessage:
    if result.call_id not in called:
        raise RequestError(f"'{at}.call_id' names no call before it", param=f"{at}.call_id")
    return ChatMessage("tool", _text(result.output, f"{at}.output"), called[result.call_id], call_id=result.call_id)
