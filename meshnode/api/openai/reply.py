"""A chat reply in the making: events in, OpenAI's chunks or its whole completion out."""

import time
from typing import ClassVar

import attrs
import msgspec

from meshnode import __version__
from meshnode.api.journey import Journey
from meshnode.api.streams import DONE, EVENTS, StreamForm, sse
from meshnode.types.generation import CallPiece, Delta, GenerationEvent, Started, TokenLogprob, Usage
from meshnode.types.ids import RequestId

__all__ = ["FINGERPRINT", "ChatReply", "logprob_fields", "usage_fields"]

FINGERPRINT = f"meshnode-{__version__}"


@attrs.define(eq=False)
class _Choice:
    text: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)
    calls: list[CallPiece] = attrs.field(factory=list)  # each call in one piece
    logprobs: list[dict[str, object]] = attrs.field(factory=list)


@attrs.define(eq=False)
class ChatReply:
    """One reply, streamed through `chunk_of` and `end`, or whole through `take` and `completion`."""

    form: ClassVar[StreamForm] = EVENTS
    request: RequestId
    choices_wanted: int
    wants_logprobs: bool
    include_usage: bool
    _created: int = attrs.field(factory=lambda: int(time.time()), init=False)
    _journey: Journey = attrs.field(factory=Journey, init=False)
    _choices: list[_Choice] = attrs.field(init=False)
    _head: bytes = attrs.field(default=b"", init=False)  # what every chunk begins with
    _foot: bytes = attrs.field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self._choices = [_Choice() for _ in range(self.choices_wanted)]

    def take(self, index: int, event: GenerationEvent) -> None:
        """Add an event to the whole reply."""
        self._journey.follow(index, event)
        if isinstance(event, Delta):
            choice = self._choices[index]
            choice.text.append(event.text)
            choice.reasoning.append(event.reasoning)
            choice.calls += event.calls
            choice.logprobs += [logprob_fields(entry) for entry in event.logprobs]

    def chunk_of(self, index: int, event: GenerationEvent) -> bytes:
        """Encode an event as a chunk."""
        self._journey.follow(index, event)
        if isinstance(event, Delta):
            logprobs: dict[str, object] | None = None
            if self.wants_logprobs:
                logprobs = {"content": [logprob_fields(entry) for entry in event.logprobs], "refusal": None}
            return self._chunk(index, _delta(event), logprobs, None)
        if isinstance(event, Started):
            self._prepare_chunks()
            return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None)
        return self._chunk(index, {}, None, event.reason.value)

    def end(self) -> bytes:
        """Encode what follows the last choice."""
        usage = b""
        if self.include_usage:
            usage = sse(self._common("chat.completion.chunk") | {"choices": [], "usage": self._usage()})
        return usage + self._journey.comment() + DONE

    def completion(self) -> dict[str, object]:
        """Return the whole reply."""
        choices = [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self.wants_logprobs else None,
                "finish_reason": self._journey.finished[index].reason.value,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._common("chat.completion") | {"choices": choices, "usage": self._usage()}

    def headers(self) -> dict[str, str]:
        """Return the headers that say where and how fast, as far as it is known."""
        return self._journey.headers()

    def _prepare_chunks(self) -> None:
        if not self._head:
            self._head = b"data: " + msgspec.json.encode(self._common("chat.completion.chunk"))[:-1] + b',"choices":['
            self._foot = b'],"usage":null}\n\n' if self.include_usage else b"]}\n\n"

    def _chunk(
        self, index: int, delta: dict[str, object], logprobs: dict[str, object] | None, finish_reason: str | None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return b"".join((self._head, msgspec.json.encode(choice), self._foot))

    def _common(self, kind: str) -> dict[str, object]:
        return {
            "id": f"chatcmpl-{self.request}",
            "object": kind,
            "created": self._created,
            "model": "" if self._journey.started is None else self._journey.started.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _usage(self) -> dict[str, object]:
        return usage_fields(self._journey.usage(self.choices_wanted))


def usage_fields(usage: Usage) -> dict[str, object]:
    """Return token counts as OpenAI writes them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _message(choice: _Choice) -> dict[str, object]:
    text, reasoning = "".join(choice.text), "".join(choice.reasoning)
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if choice.calls:
        message["content"] = text or None
        message["tool_calls"] = [_call(piece) for piece in choice.calls]
    return message


def _delta(event: Delta) -> dict[str, object]:
    delta: dict[str, object] = {}
    if event.reasoning:
        delta["reasoning_content"] = event.reasoning
    if event.text or not (event.reasoning or event.calls):
        delta["content"] = event.text
    if event.calls:
        delta["tool_calls"] = [{"index": piece.index, **_call(piece)} for piece in event.calls]
    return delta


def _call(piece: CallPiece) -> dict[str, object]:
    return {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": piece.arguments}}


def logprob_fields(entry: TokenLogprob) -> dict[str, object]:
    """Return a token's log-probability as OpenAI writes it."""
    return {
        "token": entry.token,
        "logprob": entry.logprob,
        "bytes": list(entry.raw),
        "top_logprobs": [{"token": top.token, "logprob": top.logprob, "bytes": list(top.raw)} for top in entry.top],
    }
