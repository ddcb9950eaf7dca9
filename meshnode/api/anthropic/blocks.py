"""Content blocks as they come in. What is not among them, such as an image, is refused by its type."""

from typing import Annotated, Any, Literal

import msgspec

from meshnode.api.hints import CacheMark

__all__ = [
    "Block",
    "Document",
    "RedactedThinking",
    "SearchResult",
    "Text",
    "Thinking",
    "ToolReference",
    "ToolResult",
    "ToolUse",
    "Turn",
]

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    cache_control: CacheMark = None


class Text(_Part, frozen=True, tag="text"):
    """Words."""

    text: str
    citations: list[Any] | None = None  # what other servers have added to their answers
    parsed_output: Any = None  # left in by the SDK's parse helper


class Thinking(_Part, frozen=True, tag="thinking"):
    """What a model thought before it spoke."""

    thinking: str
    signature: str | None = None


class RedactedThinking(_Part, frozen=True, tag="redacted_thinking"):
    """Another server's thoughts, which nobody else can read."""

    data: str


class ToolUse(_Part, frozen=True, tag="tool_use"):
    """A call."""

    id: Name
    name: Name
    input: dict[str, Any]
    caller: Any = None  # the model called, nobody else can here
    toolset_name: None = None


class Citations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to cite, which no model can here."""

    enabled: Literal[False] | None = None


class SearchResult(_Part, frozen=True, tag="search_result"):
    """A find, told to the model as text."""

    source: str
    title: str
    content: list[Text]
    citations: Citations | None = None


class ToolReference(_Part, frozen=True, tag="tool_reference"):
    """A tool that a search among tools has found; here the model knows them all from the beginning."""

    tool_name: str


class PlainText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A document's text."""

    data: str
    media_type: Literal["text/plain"] = "text/plain"


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="content"):
    """A document's text, in blocks."""

    content: str | list[Text]


class Document(_Part, frozen=True, tag="document"):
    """A document of text; those of other kinds nobody here can read."""

    source: PlainText | Written
    title: str | None = None
    context: str | None = None
    citations: Citations | None = None


class ToolResult(_Part, frozen=True, tag="tool_result"):
    """What a call has given."""

    tool_use_id: str
    content: str | list[Text | SearchResult | Document | ToolReference] | None = None
    is_error: bool | None = None
    toolset_name: None = None


Block = Text | Thinking | RedactedThinking | ToolUse | ToolResult | SearchResult | Document


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. Clients send messages of role `system` in the middle of a conversation too."""

    role: str
    content: str | list[Block]
