"""A conversation of blocks, flattened to what a template takes."""

from collections.abc import Sequence
from itertools import groupby

from meshnode.api.anthropic.blocks import (
    Block,
    Document,
    PlainText,
    SearchResult,
    Text,
    Thinking,
    ToolReference,
    ToolResult,
    ToolUse,
    Turn,
)
from meshnode.api.anthropic.history import check_history, check_words
from meshnode.api.bodies import json_text
from meshnode.api.parameters import check_count
from meshnode.types.conversation import ChatMessage, ToolCall

__all__ = ["flatten"]

_SEPARATOR = "\n\n"  # between paragraphs of their own: blocks of a system prompt, turns that become one


def flatten(system: str | Sequence[Text] | None, turns: Sequence[Turn]) -> tuple[ChatMessage, ...]:
    """Return the messages as a template takes them; neighbours of one role are one turn.

    Raises RequestError naming what cannot stand where it stands.
    """
    check_count("messages", turns, "content")
    blocks = [block for turn in turns if not isinstance(turn.content, str) for block in turn.content]
    check_count("messages", blocks, "content")  # what results of tools hold
    check_history(turns)
    flat: list[ChatMessage] = []  # neighbours of one role are still apart
    if system:
        if not isinstance(system, str):
            check_words("system", system)
        flat.append(ChatMessage("system", _system(system)))
    called: dict[str, str] = {}  # id of a call: the tool's name
    for turn in turns:
        match turn.role:
            case "system":
                flat.append(ChatMessage("system", _system(turn.content)))
            case "user":
                flat += _user(turn, called)
            case _:
                message = _assistant(turn)
                called |= {call.id: call.name for call in message.calls}
                flat.append(message)
    runs = (list(run) for _, run in groupby(flat, lambda message: message.role))
    return tuple(message for run in runs for message in _joined(run))


def _joined(run: list[ChatMessage]) -> list[ChatMessage]:
    """Return what one side says in a row as one message: templates may insist that roles alternate. Results stay apart."""
    if len(run) == 1 or run[0].role == "tool":
        return run
    return [
        ChatMessage(
            run[0].role,
            _SEPARATOR.join(message.content for message in run if message.content),
            calls=tuple(call for message in run for call in message.calls),
            reasoning=_SEPARATOR.join(message.reasoning for message in run if message.reasoning),
        )
    ]


def _system(content: str | Sequence[Block]) -> str:
    if isinstance(content, str):
        return content
    return _SEPARATOR.join(block.text for block in content if isinstance(block, Text))


def _user(turn: Turn, called: dict[str, str]) -> list[ChatMessage]:
    if isinstance(turn.content, str):
        return [ChatMessage("user", turn.content)]
    messages, texts = [], []
    for block in turn.content:
        if isinstance(block, ToolResult):
            text = _result(block)
            messages.append(ChatMessage("tool", text, called[block.tool_use_id], call_id=block.tool_use_id))
        elif isinstance(block, Text | Document | SearchResult):
            texts.append(_text(block))
    return [*messages, *([ChatMessage("user", "".join(texts))] if texts else [])]


def _result(block: ToolResult) -> str:
    text = block.content or ""
    if not isinstance(text, str):
        text = "".join(_text(part) for part in text)
    return f"Error: {text}" if block.is_error else text


def _text(block: Text | Document | SearchResult | ToolReference) -> str:
    match block:
        case Text():
            return block.text
        case ToolReference():
            return f"{block.tool_name}\n"
        case SearchResult():
            found = _SEPARATOR.join(part.text for part in block.content)
            return f"{block.title}\n{block.source}\n\n{found}\n\n"
        case Document():
            source = block.source
            written = source.data if isinstance(source, PlainText) else _system(source.content)
            parts = (block.title, block.context, written)
            return _SEPARATOR.join(part for part in parts if part) + _SEPARATOR


def _assistant(turn: Turn) -> ChatMessage:
    if isinstance(turn.content, str):
        return ChatMessage("assistant", turn.content)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block in turn.content:
        match block:
            case Text():
                texts.append(block.text)
            case Thinking():
                thoughts.append(block.thinking)
            case ToolUse():
                what = f"the arguments of a call of {block.name[:80]!r}"
                calls.append(ToolCall(block.id, block.name, json_text(block.input, what)))
            case _:
                pass  # redacted thoughts, which nobody else can read
    return ChatMessage("assistant", "".join(texts), calls=tuple(calls), reasoning="".join(thoughts))
