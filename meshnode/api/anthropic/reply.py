"""A message in the making: whole, or as events in the exact order of Anthropic's streams.

message_start, ping, then for each block content_block_start, its deltas and content_block_stop, then message_delta with the
reason and the counts, then message_stop (https://docs.anthropic.com/en/docs/build-with-claude/streaming).
"""

import hashlib

import attrs
import msgspec

from meshnode.api.anthropic.failures import anthropic_error
from meshnode.api.failures import Failure
from meshnode.api.journey import Journey
from meshnode.api.streams import StreamForm
from meshnode.types.generation import CallPiece, Delta, Finished, FinishReason, GenerationEvent, Started
from meshnode.types.ids import RequestId

__all__ = ["STREAM_TYPE", "MessageReply"]

_REASONS = {FinishReason.LENGTH: "max_tokens", FinishReason.TOOL_CALLS: "tool_use", FinishReason.STOP: "end_turn"}


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


STREAM_TYPE = "text/event-stream; charset=utf-8"
_PING = _event("ping")


@attrs.define
class _Block:
    """A block: its kind, what it began with, and the pieces of its text, thoughts or arguments."""

    kind: str  # thinking, text or tool_use
    call: CallPiece | None = None
    pieces: list[str] = attrs.field(factory=list)

    def start(self) -> dict[str, object]:
        """Return the block as it begins."""
        match self.kind:
            case "thinking":
                return {"type": "thinking", "thinking": "", "signature": ""}
            case "text":
                return {"type": "text", "text": ""}
            case _:
                assert self.call is not None
                return {"type": "tool_use", "id": self.call.id, "name": self.call.name, "input": {}}

    def delta(self, piece: str) -> dict[str, object]:
        """Return the change that adds a piece."""
        match self.kind:
            case "thinking":
                return {"type": "thinking_delta", "thinking": piece}
            case "text":
                return {"type": "text_delta", "text": piece}
            case _:
                return {"type": "input_json_delta", "partial_json": piece}

    def whole(self) -> dict[str, object]:
        """Return the block as it ended."""
        text, start = "".join(self.pieces), self.start()
        match self.kind:
            case "thinking":
                return start | {"thinking": text, "signature": self.signature()}
            case "text":
                return start | {"text": text}
            case _:
                return start | {"input": msgspec.Raw(text.encode() or b"{}")}

    def signature(self) -> str:
        """Return what stands for the thoughts. It is taken back and not checked: who owns the node may change them."""
        return hashlib.sha256("".join(self.pieces).encode()).hexdigest()[:32]


@attrs.define(eq=False)
class MessageReply:
    """The reply to one request."""

    request: RequestId
    max_tokens: int  # as it was asked for, which may be more than the context has room for; 0: the prompt is only read
    hides_thinking: bool = False
    manages_context: bool = False  # edits of the conversation were allowed; none is made
    _journey: Journey = attrs.field(factory=Journey, init=False)
    _blocks: list[_Block] = attrs.field(factory=list, init=False)

    @property
    def form(self) -> StreamForm:
        """How it is streamed."""
        return StreamForm(STREAM_TYPE, _PING, self._error_event)

    def _error_event(self, failure: Failure) -> bytes:
        return b"event: error\ndata: " + anthropic_error(failure, self.request) + b"\n\n"

    def take(self, index: int, event: GenerationEvent) -> None:
        """Add an event to the whole message."""
        self.chunk_of(index, event)

    def chunk_of(self, index: int, event: GenerationEvent) -> bytes:
        """Return an event as part of a stream."""
        self._journey.follow(index, event)
        match event:
            case Started():
                return _event("message_start", message=self._message([], None)) + _event("ping")
            case Delta():
                pieces = _pieces(event, hidden=self.hides_thinking) if self.max_tokens else []
                return b"".join(self._add(kind, piece, call) for kind, piece, call in pieces)
            case Finished():
                ending = {"stop_reason": self._reason(event), "stop_sequence": event.stop_sequence}
                fields = {"delta": ending, "usage": self._usage(), **self._edits()}
                return self._close() + _event("message_delta", **fields)

    def end(self) -> bytes:
        """Return the last event."""
        return self._journey.comment() + _event("message_stop")

    def completion(self) -> dict[str, object]:
        """Return the whole message."""
        return self._message([block.whole() for block in self._blocks], self._journey.finished[0])

    def headers(self) -> dict[str, str]:
        """Return the headers that say where and how fast, as far as it is known."""
        return self._journey.headers()

    def _add(self, kind: str, piece: str, call: CallPiece | None) -> bytes:
        """Add a piece to the block it belongs to, which is a new one when the kind changes or another call begins."""
        out, last = b"", self._blocks[-1] if self._blocks else None
        if (
            last is None
            or last.kind != kind
            or (call is not None and last.call is not None and last.call.index != call.index)
        ):
            out = self._close()
            self._blocks.append(last := _Block(kind, call))
            out += _event("content_block_start", index=len(self._blocks) - 1, content_block=last.start())
        if piece:
            last.pieces.append(piece)
            out += _event("content_block_delta", index=len(self._blocks) - 1, delta=last.delta(piece))
        return out

    def _close(self) -> bytes:
        if not self._blocks:
            return b""
        index, last, out = len(self._blocks) - 1, self._blocks[-1], b""
        if last.kind == "thinking":
            signature = {"type": "signature_delta", "signature": last.signature()}
            out = _event("content_block_delta", index=index, delta=signature)
        return out + _event("content_block_stop", index=index)

    def _message(self, content: list[dict[str, object]], finished: Finished | None) -> dict[str, object]:
        return {
            "id": f"msg_{self.request}",
            "type": "message",
            "role": "assistant",
            "model": "" if self._journey.started is None else self._journey.started.model,
            "content": content,
            "stop_reason": None if finished is None else self._reason(finished),
            "stop_sequence": None if finished is None else finished.stop_sequence,
            "usage": self._usage(),
            **({} if finished is None else self._edits()),
        }

    def _edits(self) -> dict[str, object]:
        return {"context_management": {"applied_edits": []}} if self.manages_context else {}

    def _reason(self, finished: Finished) -> str:
        """Return why it ended: an answer cut off before it had as many tokens as it might have had ran out of context."""
        if not self.max_tokens:
            return "max_tokens"
        if finished.stop_sequence is not None:
            return "stop_sequence"
        if finished.reason is FinishReason.LENGTH and finished.usage.completion_tokens < self.max_tokens:
            return "model_context_window_exceeded"
        return _REASONS[finished.reason]

    def _usage(self) -> dict[str, object]:
        """Return the counts. Tokens read from the cache are counted apart; writing to it costs nothing and is not told."""
        usage = self._journey.usage()
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens if self.max_tokens else 0,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens if self.max_tokens else 0},
        }


def _pieces(event: Delta, *, hidden: bool) -> list[tuple[str, str, CallPiece | None]]:
    """Return what a delta adds, in reading order: kind of block, text, call."""
    found: list[tuple[str, str, CallPiece | None]] = []
    if event.reasoning:
        found.append(("thinking", "" if hidden else event.reasoning, None))
    if event.text:
        found.append(("text", event.text, None))
    return found + [("tool_use", piece.arguments, piece) for piece in event.calls]
