"""Conversations as chat templates take them, and as those take them that know less."""

import hashlib
import json
from collections.abc import Callable, Sequence

import attrs
import msgspec

from meshnode.text.tool_calls.base import CallText, ToolFormat
from meshnode.types.conversation import ChatMessage, Tool

__all__ = [
    "folded",
    "history_call_id",
    "template_messages",
    "template_tools",
    "unescaped",
    "without_system",
    "without_tools",
]

Shield = Callable[[str], str]

_INSTRUCTIONS = """You may call functions. These are their signatures:

{signatures}

To call one, write its name and arguments as a JSON object:
{example}

Call a function only when it helps; else answer in plain words. Results come back between <tool_response> and </tool_response>."""


def template_messages(
    messages: Sequence[ChatMessage], shield: Shield, fence: Shield, made: ToolFormat | None, *, objects: bool
) -> list[dict[str, object]]:
    """Return the messages as dictionaries of the shape that Hugging Face templates expect.

    `shield` and `fence` guard strings of the conversation; with `objects` the arguments of calls are objects, else text.
    """
    return [_message(message, shield, fence, made, objects=objects) for message in messages]


def _message(
    message: ChatMessage, shield: Shield, fence: Shield, made: ToolFormat | None, *, objects: bool
) -> dict[str, object]:
    found: dict[str, object] = {"role": message.role, "content": fence(message.content)}
    if message.name is not None:
        found["name"] = shield(message.name)
    if message.reasoning:
        found["reasoning_content"] = fence(message.reasoning)
    if message.call_id is not None:
        found["tool_call_id"] = history_call_id(message.call_id, made)
    if message.calls:
        found["tool_calls"] = [
            {
                "id": history_call_id(call.id, made),
                "type": "function",
                "function": {
                    "name": shield(call.name),
                    "arguments": _arguments(call.arguments, shield, objects=objects),
                },
            }
            for call in message.calls
        ]
    return found


def template_tools(tools: Sequence[Tool], shield: Shield) -> list[dict[str, object]]:
    """Return the tools as dictionaries of that shape."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": shield(tool.description),
                "parameters": _shielded(json.loads(tool.parameters), shield),
            },
        }
        for tool in tools
    ]


def history_call_id(call_id: str, made: ToolFormat | None) -> str:
    """Return a call's id as the model's templates take it: some insist on nine letters and digits."""
    if made is None or not made.short_ids:
        return call_id if call_id.isascii() and call_id.isprintable() else _digest(call_id)
    return call_id if len(call_id) == 9 and call_id.isascii() and call_id.isalnum() else _digest(call_id)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()[:9]


def _arguments(text: str, shield: Shield, *, objects: bool) -> object:
    if not objects:
        return shield(text)
    try:
        return _shielded(msgspec.json.decode(text), shield)
    except msgspec.DecodeError:
        return shield(text)


def _shielded(value: object, shield: Shield) -> object:
    """Guard every string in a JSON value, keys too."""
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, list):
        return [_shielded(item, shield) for item in value]
    if isinstance(value, dict):
        return {shield(key): _shielded(item, shield) for key, item in value.items()}
    return value


def unescaped(text: str) -> str:
    """Return JSON text with every character written as itself."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text


def without_tools(messages: Sequence[ChatMessage], tools: Sequence[Tool], made: ToolFormat) -> tuple[ChatMessage, ...]:
    """Return the conversation for a template that knows no tools: told in the system message, calls and results as text."""
    plain = [_plain(message, made) for message in messages]
    if not tools:
        return _merged(plain)
    signatures = "\n".join(
        json.dumps(
            {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)},
            ensure_ascii=False,
        )
        for tool in tools
    )
    example = made.spelling.written(CallText("<function-name>", "<arguments>"))
    text = _INSTRUCTIONS.format(signatures=signatures, example=example)
    if plain and plain[0].role == "system":
        plain[0] = attrs.evolve(plain[0], content=f"{plain[0].content}\n\n{text}")
    else:
        plain.insert(0, ChatMessage("system", text))
    return _merged(plain)


def _plain(message: ChatMessage, made: ToolFormat) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if message.calls:
        calls = "\n".join(made.spelling.written(CallText(call.name, call.arguments)) for call in message.calls)
        return ChatMessage("assistant", f"{message.content}\n{calls}" if message.content else calls)
    return message


def folded(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Return the conversation with system messages at the beginning only: later ones are said by the user.

    Neighbours of one role become one message: many templates insist that roles alternate.
    """
    begins = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    system = "\n\n".join(message.content for message in messages[:begins])
    later = [
        ChatMessage("user", message.content) if message.role == "system" else message for message in messages[begins:]
    ]
    head = [ChatMessage("system", system)] if system else []
    return _merged([*head, *later])


def without_system(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Return the conversation with what the system says told by the user, for templates that know no system."""
    return _merged(
        [ChatMessage("user", message.content) if message.role == "system" else message for message in messages]
    )


def _merged(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    merged: list[ChatMessage] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is not None and last.role == message.role == "user":
            merged[-1] = ChatMessage("user", f"{last.content}\n\n{message.content}")
        else:
            merged.append(message)
    return tuple(merged)
