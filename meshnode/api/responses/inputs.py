"""Input items as they come in: their own answers too, as SDKs send them back. What no model here is told is refused by name."""

from typing import Any, Literal

import msgspec

from meshnode.api.hints import CacheMark

__all__ = ["INPUTS", "Call", "CallOutput", "Message", "Part", "Reasoning", "Reference"]

_Status = Literal["in_progress", "completed", "incomplete"]


class _Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    type: str
    id: str | None = None
    status: _Status | None = None  # how far it had come; the model is told what there is of it


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part of a message or a result. Only text is taken; the fields of other kinds are there to refuse them by their type."""

    type: str
    text: str | None = None
    annotations: list[dict[str, Any]] | None = None  # what other servers have added to their answers
    logprobs: list[dict[str, Any]] | None = None
    parsed: Any = None  # left in by the SDK's parse helper
    prompt_cache_breakpoint: CacheMark = None
    refusal: str | None = None
    image_url: Any = None
    file_id: Any = None
    file_data: Any = None
    file_url: Any = None
    filename: Any = None
    detail: Any = None
    input_audio: Any = None


class Message(_Input, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A turn."""

    type: Literal["message"] = "message"
    role: str
    content: str | list[Part]
    phase: Literal["commentary", "final_answer"] | None = None  # a label of answers


class Thought(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part of a reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class Reasoning(_Input, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model thought. Another server's encrypted thoughts are left out, since nobody else can read them."""

    summary: list[Thought] | None = None
    content: list[Thought] | None = None
    encrypted_content: str | None = None


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who called: the model, nobody else can here."""

    type: Literal["direct"]


class Call(_Input, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A call of a function."""

    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    caller: Caller | None = None
    parsed_arguments: Any = None  # left in by the SDK's parse helper


class CallOutput(_Input, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What came of a call, which says the function's name."""

    call_id: str
    output: str | list[Part]
    name: str | None = None
    namespace: str | None = None
    caller: Caller | None = None


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item that this node keeps."""

    id: str
    type: Literal["item_reference"] | None = None


INPUTS: dict[str, type[Message | Reasoning | Call | CallOutput]] = {
    "message": Message,
    "reasoning": Reasoning,
    "function_call": Call,
    "function_call_output": CallOutput,
}
"""By type."""
