"""The messages of a chat request, flattened to the text a template takes."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage

__all__ = ["Message", "Part", "flatten"]

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}
_TOOL_ROLES = ("tool", "function")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part of a message. Only text is taken; the fields of other kinds are there to refuse them by their type."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: str | None = None


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. The last row is what SDKs send back with an answer of ours; it must not say anything."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Any = None
    annotations: Any = None
    function_call: Any = None
    tool_calls: Any = None


def flatten(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """Return the messages as the template takes them. Raises RequestError naming what is not supported, and where."""
    if not messages:
        raise RequestError("'messages' must not be empty", param="messages")
    return tuple(_flat(message, f"messages[{index}]") for index, message in enumerate(messages))


def _flat(message: Message, at: str) -> ChatMessage:
    if message.role in _TOOL_ROLES:
        raise RequestError(
            f"messages of role {message.role!r} need tools, which this node does not support", param=f"{at}.role"
        )
    if message.role not in _ROLES:
        raise RequestError(f"{message.role[:40]!r} is not a role; there are: {', '.join(_ROLES)}", param=f"{at}.role")
    for field in ("tool_call_id", "refusal", "audio", "annotations", "function_call", "tool_calls"):
        if getattr(message, field):
            raise RequestError(f"'{at}.{field}' is not supported by this node", param=f"{at}.{field}")
    if message.content is None or message.content == []:
        raise RequestError(f"'{at}.content' is needed and not there", param=f"{at}.content")
    if isinstance(message.content, str):
        text = message.content
    else:
        text = "".join(_text(part, f"{at}.content[{index}]") for index, part in enumerate(message.content))
    return ChatMessage(_ROLES[message.role], text, message.name)


def _text(part: Part, at: str) -> str:
    if part.type != "text":
        raise RequestError(
            f"parts of type {part.type[:40]!r} are not supported by this node; 'text' is", param=f"{at}.type"
        )
    if part.text is None:
        raise RequestError(f"'{at}.text' is needed and not there", param=f"{at}.text")
    return part.text
