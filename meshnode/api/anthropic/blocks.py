"""Content blocks of a conversation, flattened to what a template takes."""

from collections.abc import Sequence
from typing import Any

import msgspec

from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, ToolCall

__all__ = ["Block", "Turn", "flatten"]

_SEPARATOR = "\n\n"  # between blocks of a system prompt, which are paragraphs of their own


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block. The fields of kinds that are not supported are there to refuse them by their type."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    source: Any = None
    title: Any = None
    context: Any = None
    cache_control: Any = None  # every prefix is cached, marked or not
    citations: Any = None  # null, or what other servers have added to their answers
    caller: Any = None  # the model called, nobody else can here
    parsed_output: Any = None  # left in by the SDK's parse helper


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. Clients send messages of role `system` in the middle of a conversation too."""

    role: str
    content: str | list[Block]


def flatten(system: str | Sequence[Block] | None, turns: Sequence[Turn]) -> tuple[ChatMessage, ...]:
    """Return the messages as a template takes them. Raises RequestError naming what is not supported, and where."""
    if not turns:
        raise RequestError("messages: at least one message is required", param="messages")
    flat: list[ChatMessage] = []
    if system:
        flat.append(ChatMessage("system", _system(system, "system")))
    called: dict[str, str] = {}  # id of a call: the tool's name
    for index, turn in enumerate(turns):
        at = f"messages.{index}"
        match turn.role:
            case "user":
                flat += _user(turn, at, called)
            case "assistant":
                flat.append(_assistant(turn, at))
                called |= {call.id: call.name for call in flat[-1].calls}
            case "system":
                flat.append(ChatMessage("system", _system(turn.content, f"{at}.content")))
            case other:
                raise RequestError(f"{at}.role: {other[:40]!r} is not user, assistant or system", param=f"{at}.role")
    if turns[-1].role == "assistant":
        raise RequestError(
            "messages: the last one is the assistant's; to go on from the beginning of an answer is not supported by this node",
            param="messages",
        )
    return tuple(flat)


def _system(content: str | Sequence[Block], at: str) -> str:
    if isinstance(content, str):
        return content
    return _SEPARATOR.join(_text(block, f"{at}.{index}") for index, block in enumerate(content))


def _user(turn: Turn, at: str, called: dict[str, str]) -> list[ChatMessage]:
    if isinstance(turn.content, str):
        return [ChatMessage("user", turn.content)]
    results: list[ChatMessage] = []
    texts: list[str] = []
    for index, block in enumerate(turn.content):
        where = f"{at}.content.{index}"
        if block.type == "tool_result":
            results.append(_result(block, where, called))
        else:
            texts.append(_text(block, where))
    if not results and not texts:
        raise RequestError(f"{at}.content: must not be empty", param=f"{at}.content")
    return [*results, *([ChatMessage("user", "".join(texts))] if texts else [])]


def _result(block: Block, at: str, called: dict[str, str]) -> ChatMessage:
    if block.tool_use_id not in called:
        raise RequestError(f"{at}.tool_use_id: names no tool_use before it", param=f"{at}.tool_use_id")
    content = block.content
    if content is None or isinstance(content, str):
        text = content or ""
    else:
        try:
            parts = msgspec.convert(content, list[Block])
        except msgspec.ValidationError as error:
            raise RequestError(f"{at}.content: {error}", param=f"{at}.content") from error
        text = "".join(_text(part, f"{at}.content.{index}") for index, part in enumerate(parts))
    if block.is_error:
        text = f"Error: {text}"
    return ChatMessage("tool", text, called[block.tool_use_id], call_id=block.tool_use_id)


def _assistant(turn: Turn, at: str) -> ChatMessage:
    if isinstance(turn.content, str):
        return ChatMessage("assistant", turn.content)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(turn.content):
        where = f"{at}.content.{index}"
        match block.type:
            case "thinking":
                thoughts.append(block.thinking or "")
            case "redacted_thinking":
                pass  # another server's, which nobody else can read
            case "tool_use":
                calls.append(_call(block, where))
            case _:
                texts.append(_text(block, where))
    return ChatMessage("assistant", "".join(texts), calls=tuple(calls), reasoning="".join(thoughts))


def _call(block: Block, at: str) -> ToolCall:
    if not block.id or not block.name:
        raise RequestError(f"{at}: a tool_use has an 'id' and a 'name'", param=at)
    return ToolCall(block.id, block.name, msgspec.json.encode(block.input or {}).decode())


def _text(block: Block, at: str) -> str:
    if block.type in ("image", "document"):
        raise RequestError(f"{at}: the model takes text only; {block.type} blocks are not supported", param=at)
    if block.type != "text":
        raise RequestError(
            f"{at}: blocks of type {block.type[:40]!r} are not supported by this node", param=f"{at}.type"
        )
    if block.text is None:
        raise RequestError(f"{at}.text: is needed and not there", param=f"{at}.text")
    return block.text
