"""An answer in the making, as Responses tells it: items with parts, each opened, filled and closed by events of its own."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import msgspec

from meshnode.api.failures import Failure
from meshnode.api.journey import Journey
from meshnode.api.openai.reply import logprob_fields
from meshnode.api.responses.schemas import ResponseRequest
from meshnode.types.generation import CallPiece, Delta, Finished, FinishReason, GenerationEvent, Started

__all__ = ["ResponseReply"]

_Event = dict[str, Any]


@attrs.define(eq=False)
class ResponseReply:
    """One reply. `events_of` takes generation events and returns what a stream tells; `resource` is the whole at any time."""

    id: str
    request: ResponseRequest
    created: int = attrs.field(factory=lambda: int(time.time()))
    status: str = "in_progress"
    error: dict[str, str] | None = None
    output: list[dict[str, Any]] = attrs.field(factory=list)
    journey: Journey = attrs.field(factory=Journey)
    _sequence: int = attrs.field(default=0, init=False)
    _open: dict[str, Any] | None = attrs.field(default=None, init=False)  # the item that is being filled
    _text: list[str] = attrs.field(factory=list, init=False)  # of its part
    _logprobs: list[dict[str, object]] = attrs.field(factory=list, init=False)

    def resource(self) -> dict[str, Any]:
        """Return the response object."""
        asked = self.request
        text = asked.text.format if asked.text is not None else None
        reasoning = asked.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": self.status,
            "background": bool(asked.background),
            "error": self.error,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "model": asked.model if self.journey.started is None else self.journey.started.model,
            "output": self._so_far(),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.store is not False,
            "temperature": asked.temperature,
            "text": {"format": text or {"type": "text"}},
            "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
            "tools": [tool for tool in asked.tools or () if tool.get("type") == "function"],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": self._usage(),
            "user": asked.user,
            "metadata": asked.metadata or {},
        }

    def opening(self) -> bytes:
        """Return the first two events."""
        return b"".join(
            self._encoded({"type": kind, "response": self.resource()})
            for kind in ("response.created", "response.in_progress")
        )

    def chunk_of(self, event: GenerationEvent) -> bytes:
        """Take an event and return what a stream tells of it; the last one is told by `ending`."""
        return b"".join(map(self._encoded, self.events_of(event)))

    def ending(self) -> bytes:
        """Return the last event."""
        return self._encoded({"type": f"response.{self.status}", "response": self.resource()})

    def fail(self, failure: Failure) -> None:
        """Note that the answer could not be finished."""
        self.status = "failed"
        code = (
            "rate_limit_exceeded"
            if failure.status == 429
            else "server_error"
            if failure.status >= 500
            else failure.code
        )
        self.error = {"code": code or "server_error", "message": failure.message}
        self._settle("incomplete")

    def cancel(self) -> None:
        """Note that nobody wants the rest of the answer; what there is of it stays."""
        self.status = "cancelled"
        self._settle("incomplete")

    def events_of(self, event: GenerationEvent) -> Iterator[_Event]:
        """Take a generation event; yield the events that a stream has of it."""
        self.journey.follow(0, event)
        match event:
            case Started():
                return
            case Delta():
                if event.reasoning:
                    yield from self._add(event.reasoning, "reasoning")
                if event.text:
                    logprobs = [logprob_fields(entry) for entry in event.logprobs]
                    yield from self._add(event.text, "message", logprobs)
                for piece in event.calls:
                    yield from self._close()
                    yield from self._call(piece)
            case Finished():
                is_cut = event.reason is FinishReason.LENGTH
                yield from self._close("incomplete" if is_cut else "completed")
                self.status = "incomplete" if is_cut else "completed"

    def _add(self, text: str, kind: str, logprobs: Sequence[dict[str, object]] = ()) -> Iterator[_Event]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            yield from self._begin(kind)
        self._text.append(text)
        self._logprobs += logprobs
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        found = self._at() | {"type": name, "delta": text}
        yield found | ({"logprobs": list(logprobs)} if kind == "message" else {})

    def _begin(self, kind: str) -> Iterator[_Event]:
        index, prefix = len(self.output), "msg" if kind == "message" else "rs"
        item: dict[str, Any] = {
            "type": kind,
            "id": f"{prefix}_{self.id.partition('_')[2]}_{index}",
            "status": "in_progress",
        }
        item |= {"role": "assistant", "content": []} if kind == "message" else {"summary": [], "content": []}
        self._open, self._text, self._logprobs = item, [], []
        self.output.append(item)
        yield {"type": "response.output_item.added", "output_index": index, "item": dict(item)}
        yield self._at() | {"type": "response.content_part.added", "part": self._part(whole=False)}

    def _close(self, status: str = "completed") -> Iterator[_Event]:
        item = self._open
        if item is None:
            return
        text, part = "".join(self._text), self._part(whole=True)
        is_message = item["type"] == "message"
        name = "response.output_text.done" if is_message else "response.reasoning_text.done"
        done = self._at() | {"type": name, "text": text}
        yield done | ({"logprobs": part["logprobs"]} if is_message else {})
        yield self._at() | {"type": "response.content_part.done", "part": part}
        self._settle(status)
        yield {"type": "response.output_item.done", "output_index": len(self.output) - 1, "item": item}

    def _settle(self, status: str) -> None:
        """Fill the open item with what there is of it, and close it."""
        if self._open is not None:
            self._open["content"], self._open["status"] = [self._part(whole=True)], status
            self._open = None

    def _so_far(self) -> list[dict[str, Any]]:
        """Return the items, that which is being filled with what it holds now."""
        if self._open is None:
            return self.output
        return [*self.output[:-1], self._open | {"content": [self._part(whole=True)]}]

    def _call(self, piece: CallPiece) -> Iterator[_Event]:
        index = len(self.output)
        item = {
            "type": "function_call",
            "id": f"fc_{self.id.partition('_')[2]}_{index}",
            "call_id": piece.id,
            "name": piece.name,
        }
        opened, whole = (
            {"arguments": "", "status": "in_progress"},
            {"arguments": piece.arguments, "status": "completed"},
        )
        self.output.append(item | whole)
        at = {"item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.added", "output_index": index, "item": item | opened}
        yield {"type": "response.function_call_arguments.delta", **at, "delta": piece.arguments}
        yield {"type": "response.function_call_arguments.done", **at, "name": piece.name, "arguments": piece.arguments}
        yield {"type": "response.output_item.done", "output_index": index, "item": item | whole}

    def _at(self) -> _Event:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.output) - 1, "content_index": 0}

    def _part(self, *, whole: bool) -> dict[str, Any]:
        assert self._open is not None
        text = "".join(self._text) if whole else ""
        if self._open["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs if whole else []}

    def _usage(self) -> dict[str, object] | None:
        if not self.journey.finished:
            return None
        usage = self.journey.usage()
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _encoded(self, event: _Event) -> bytes:
        event["sequence_number"], self._sequence = self._sequence, self._sequence + 1
        return f"event: {event['type']}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
