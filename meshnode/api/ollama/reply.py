"""A reply of Ollama's in the making: events in, lines of JSON or one whole object out."""

import datetime
from typing import ClassVar

import attrs
import msgspec

from meshnode.api.journey import Journey
from meshnode.api.openai.reply import logprob_fields
from meshnode.api.replies import ollama_error
from meshnode.api.streams import StreamForm
from meshnode.types.generation import CallPiece, Delta, Finished, FinishReason, GenerationEvent

__all__ = ["LINES", "OllamaReply", "loaded_reply", "timestamp"]

LINES = StreamForm("application/x-ndjson", b" ", lambda failure: ollama_error(failure) + b"\n")
"""One object a line. Its clients do not take empty lines, but white space before an object."""


@attrs.define(eq=False)
class OllamaReply:
    """One reply, streamed through `chunk_of`, or whole through `take` and `completion`."""

    form: ClassVar[StreamForm] = LINES
    asked: str  # the model's name in the request
    is_chat: bool  # else the shape of /api/generate
    wants_logprobs: bool
    _journey: Journey = attrs.field(factory=Journey, init=False)
    _deltas: list[Delta] = attrs.field(factory=list, init=False)

    def take(self, index: int, event: GenerationEvent) -> None:
        """Add an event to the whole reply."""
        self._journey.follow(index, event)
        if isinstance(event, Delta):
            self._deltas.append(event)

    def chunk_of(self, index: int, event: GenerationEvent) -> bytes:
        """Encode an event as a line; nothing is said of the beginning."""
        self._journey.follow(index, event)
        if isinstance(event, Delta):
            return _line(self._common() | self._said(event) | {"done": False})
        if isinstance(event, Finished):
            return _line(self._common() | self._said(Delta()) | self._ending())
        return b""

    def end(self) -> bytes:
        """Return nothing: the last line has said it all."""
        return b""

    def completion(self) -> dict[str, object]:
        """Return the whole reply."""
        whole = Delta(
            "".join(delta.text for delta in self._deltas),
            tuple(entry for delta in self._deltas for entry in delta.logprobs),
            reasoning="".join(delta.reasoning for delta in self._deltas),
            calls=tuple(piece for delta in self._deltas for piece in delta.calls),
        )
        return self._common() | self._said(whole) | self._ending()

    def headers(self) -> dict[str, str]:
        """Return the headers that say where and how fast, as far as it is known."""
        return self._journey.headers()

    def _common(self) -> dict[str, object]:
        started = self._journey.started
        return {"model": self.asked if started is None else started.model, "created_at": timestamp()}

    def _said(self, delta: Delta) -> dict[str, object]:
        said: dict[str, object] = (
            {"role": "assistant", "content": delta.text} if self.is_chat else {"response": delta.text}
        )
        if delta.reasoning:
            said["thinking"] = delta.reasoning
        if delta.calls and self.is_chat:
            said["tool_calls"] = [_call(piece) for piece in delta.calls]
        whole: dict[str, object] = {"message": said} if self.is_chat else said
        if self.wants_logprobs and delta.logprobs:
            whole["logprobs"] = [logprob_fields(entry) for entry in delta.logprobs]
        return whole

    def _ending(self) -> dict[str, object]:
        """Return what the last line says: why it is the last, token counts, and times in nanoseconds."""
        usage, spans = self._journey.usage(), self._journey.spans()
        cut = self._journey.finished[0].reason is FinishReason.LENGTH
        return {
            "done": True,
            "done_reason": "length" if cut else "stop",
            "total_duration": _nanoseconds(spans.total),
            "load_duration": _nanoseconds(spans.queue),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(spans.prompt),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(spans.answer),
        }


def loaded_reply(model: str, *, is_chat: bool) -> dict[str, object]:
    """Return what is said when a model has been loaded and nothing was asked of it."""
    said = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    return {"model": model, "created_at": timestamp(), **said, "done": True, "done_reason": "load"}


def timestamp(at: float | None = None) -> str:
    """Return a time in Unix seconds, or the present, as RFC 3339 has it."""
    moment = datetime.datetime.now(datetime.UTC) if at is None else datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _call(piece: CallPiece) -> dict[str, object]:
    """Return a call; its arguments are an object here, not its text."""
    function = {"index": piece.index, "name": piece.name, "arguments": msgspec.Raw(piece.arguments.encode())}
    return {"id": piece.id, "function": function}


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
