"""What a model is told and may do: messages, tools, and the form its answer must have."""

import enum
from typing import Literal

import attrs

__all__ = ["ChatMessage", "OutputFormat", "Tool", "ToolCall", "ToolMode", "ToolUse"]


@attrs.frozen
class ToolCall:
    """A call the model has made."""

    id: str
    name: str
    arguments: str  # the text of a JSON object, as the model wrote it


@attrs.frozen
class ChatMessage:
    """One turn of a conversation, already flattened to text."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    name: str | None = None  # of the speaker; of a tool's result: the tool's
    calls: tuple[ToolCall, ...] = ()  # an assistant's
    call_id: str | None = None  # of a tool's result: which call it answers
    reasoning: str = ""  # an assistant's, before its content


@attrs.frozen
class Tool:
    """A function the model may call."""

    name: str  # [a-zA-Z0-9_-]{1,128}
    description: str = ""
    parameters: str = '{"type":"object","properties":{}}'  # JSON Schema of the arguments, as text
    strict: bool = False  # a call's arguments must fit the schema, by grammar


class ToolMode(enum.Enum):
    """Whether tools are called."""

    AUTO = "auto"  # the model decides
    NONE = "none"  # it may not, though its prompt says what there is
    REQUIRED = "required"  # at least one call, by grammar


@attrs.frozen
class ToolUse:
    """The tools of a request and how they may be used."""

    tools: tuple[Tool, ...] = ()
    mode: ToolMode = ToolMode.AUTO
    named: str | None = None  # with REQUIRED: this one it must be
    parallel: bool = True  # several calls in one answer


@attrs.frozen
class OutputFormat:
    """The form an answer's text must have, by grammar."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: str = ""  # with json_schema: the schema's text
