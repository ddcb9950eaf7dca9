"""A chat reply in the making: events in, OpenAI's chunks or its whole completion out."""

import time

import attrs
import msgspec
import trio

from meshnode import __version__
from meshnode.api.streams import DONE, sse
from meshnode.types.generation import CallPiece, Delta, Finished, GenerationEvent, Started, TokenLogprob
from meshnode.types.ids import RequestId

__all__ = ["ChatReply"]

_FINGERPRINT = f"meshnode-{__version__}"


@attrs.define(eq=False)
class _Choice:
    text: list[str] = attrs.field(factory=list)
    reasoning: list[str] = attrs.field(factory=list)
    calls: list[CallPiece] = attrs.field(factory=list)  # each call in one piece
    logprobs: list[dict[str, object]] = attrs.field(factory=list)
    finished: Finished | None = None


@attrs.define(eq=False)
class ChatReply:
    """One reply, streamed through `chunk_of` and `end`, or whole through `take` and `completion`. Times: trio.current_time()."""

    request: RequestId
    choices_wanted: int
    wants_logprobs: bool
    include_usage: bool
    _created: int = attrs.field(factory=lambda: int(time.time()), init=False)
    _began: float = attrs.field(factory=trio.current_time, init=False)
    _started: Started | None = attrs.field(default=None, init=False)  # the first choice's; they share model and prompt
    _started_at: float = attrs.field(default=0.0, init=False)
    _first_text_at: float | None = attrs.field(default=None, init=False)
    _finished_at: float | None = attrs.field(default=None, init=False)
    _choices: list[_Choice] = attrs.field(init=False)
    _head: bytes = attrs.field(default=b"", init=False)  # what every chunk begins with
    _foot: bytes = attrs.field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self._choices = [_Choice() for _ in range(self.choices_wanted)]

    def take(self, index: int, event: GenerationEvent) -> None:
        """Add an event to the whole reply."""
        choice = self._choices[index]
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Delta):
            if self._first_text_at is None:
                self._first_text_at = trio.current_time()
            choice.text.append(event.text)
            choice.reasoning.append(event.reasoning)
            choice.calls += event.calls
            choice.logprobs += [_logprob(entry) for entry in event.logprobs]
        else:
            choice.finished = event
            self._finished_at = trio.current_time()

    def chunk_of(self, index: int, event: GenerationEvent) -> bytes:
        """Encode an event as a chunk."""
        if isinstance(event, Delta):
            logprobs: dict[str, object] | None = None
            if self.wants_logprobs:
                logprobs = {"content": [_logprob(entry) for entry in event.logprobs], "refusal": None}
            return self._chunk(index, _delta(event), logprobs, None)
        if isinstance(event, Started):
            self._start(event)
            return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None)
        self._choices[index].finished = event
        return self._chunk(index, {}, None, event.reason.value)

    def end(self) -> bytes:
        """Encode what follows the last choice."""
        usage = b""
        if self.include_usage:
            usage = sse(self._common("chat.completion.chunk") | {"choices": [], "usage": self._usage()})
        return usage + self._losses_comment() + DONE

    def completion(self) -> dict[str, object]:
        """Return the whole reply."""
        choices = [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self.wants_logprobs else None,
                "finish_reason": None if choice.finished is None else choice.finished.reason.value,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._common("chat.completion") | {"choices": choices, "usage": self._usage()}

    def headers(self) -> dict[str, str]:
        """Return the headers that say where and how fast, as far as it is known: milliseconds since the request was read."""
        if self._started is None:
            return {}
        times = {"queue": self._started_at, "first-token": self._first_text_at, "total": self._finished_at}
        timing = [f"{name};dur={(at - self._began) * 1e3:.1f}" for name, at in times.items() if at is not None]
        headers = {"x-meshnode-route": self._started.route}
        if (lost := self._losses()) is not None:
            headers |= {
                "x-meshnode-recovered": str(lost.recoveries),
                "x-meshnode-route": lost.route or self._started.route,
            }
            timing.append(f"recovery;dur={lost.pause * 1e3:.1f}")
        return headers | {"Server-Timing": ", ".join(timing)}

    def _losses(self) -> Finished | None:
        """Return the end of the choice that outlived the most losses."""
        ends = [choice.finished for choice in self._choices if choice.finished is not None]
        worst = max(ends, key=lambda end: end.recoveries, default=None)
        return worst if worst is not None and worst.recoveries else None

    def _losses_comment(self) -> bytes:
        """Say in a comment what the head of a stream could not know yet."""
        lost = self._losses()
        if lost is None:
            return b""
        text = f": x-meshnode-recovered: {lost.recoveries}; pause={lost.pause * 1e3:.0f}ms; route={lost.route}"
        return " ".join(text.split()).encode() + b"\n\n"

    def _start(self, event: Started) -> None:
        if self._started is None:
            self._started, self._started_at = event, trio.current_time()
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
            "model": "" if self._started is None else self._started.model,
            "system_fingerprint": _FINGERPRINT,
        }

    def _usage(self) -> dict[str, object]:
        """Return the token counts; the prompt counts once, however many choices."""
        prompt = 0 if self._started is None else self._started.prompt_tokens
        usages = [choice.finished.usage for choice in self._choices if choice.finished is not None]
        completion = sum(usage.completion_tokens for usage in usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": max((usage.cached_tokens for usage in usages), default=0)},
            "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)},
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


def _logprob(entry: TokenLogprob) -> dict[str, object]:
    return {
        "token": entry.token,
        "logprob": entry.logprob,
        "bytes": list(entry.raw),
        "top_logprobs": [{"token": top.token, "logprob": top.logprob, "bytes": list(top.raw)} for top in entry.top],
    }
