"""A reply to /v1/completions in the making: events in, OpenAI's older shapes out."""

import time
from typing import ClassVar

import attrs

from meshnode.api.journey import Journey
from meshnode.api.openai.reply import FINGERPRINT, usage_fields
from meshnode.api.streams import DONE, EVENTS, StreamForm, sse
from meshnode.types.generation import Delta, Finished, GenerationEvent, TokenLogprob
from meshnode.types.ids import RequestId

__all__ = ["CompletionReply"]


@attrs.define(eq=False)
class _Choice:
    text: list[str] = attrs.field(factory=list)
    logprobs: list[TokenLogprob] = attrs.field(factory=list)
    offset: int = 0  # characters of text that the log-probabilities sent so far cover


@attrs.define(eq=False)
class CompletionReply:
    """One reply, streamed through `chunk_of` and `end`, or whole through `take` and `completion`."""

    form: ClassVar[StreamForm] = EVENTS
    request: RequestId
    choices_wanted: int
    choices_per_prompt: int
    wants_logprobs: bool
    include_usage: bool
    _created: int = attrs.field(factory=lambda: int(time.time()), init=False)
    _journey: Journey = attrs.field(factory=Journey, init=False)
    _choices: list[_Choice] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._choices = [_Choice() for _ in range(self.choices_wanted)]

    def take(self, index: int, event: GenerationEvent) -> None:
        """Add an event to the whole reply."""
        self._journey.follow(index, event)
        if isinstance(event, Delta):
            self._choices[index].text.append(event.text)
            self._choices[index].logprobs += event.logprobs

    def chunk_of(self, index: int, event: GenerationEvent) -> bytes:
        """Encode an event as a chunk; nothing is said of the beginning."""
        self._journey.follow(index, event)
        choice = self._choices[index]
        if isinstance(event, Delta):
            logprobs = _logprobs(event.logprobs, choice) if self.wants_logprobs else None
            return self._chunk({"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": None})
        if isinstance(event, Finished):
            reason = event.reason.value
            return self._chunk({"index": index, "text": "", "logprobs": None, "finish_reason": reason})
        return b""

    def end(self) -> bytes:
        """Encode what follows the last choice."""
        usage = b""
        if self.include_usage:
            usage = sse(self._common() | {"choices": [], "usage": self._usage()})
        return usage + self._journey.comment() + DONE

    def completion(self) -> dict[str, object]:
        """Return the whole reply."""
        choices = [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": _logprobs(tuple(choice.logprobs), choice) if self.wants_logprobs else None,
                "finish_reason": self._journey.finished[index].reason.value,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._common() | {"choices": choices, "usage": self._usage()}

    def headers(self) -> dict[str, str]:
        """Return the headers that say where and how fast, as far as it is known."""
        return self._journey.headers()

    def _chunk(self, choice: dict[str, object]) -> bytes:
        usage = {"usage": None} if self.include_usage else {}
        return sse(self._common() | {"choices": [choice]} | usage)

    def _common(self) -> dict[str, object]:
        return {
            "id": f"cmpl-{self.request}",
            "object": "text_completion",
            "created": self._created,
            "model": "" if self._journey.started is None else self._journey.started.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _usage(self) -> dict[str, object]:
        return usage_fields(self._journey.usage(self.choices_per_prompt))


def _logprobs(entries: tuple[TokenLogprob, ...], choice: _Choice) -> dict[str, object]:
    """Return log-probabilities in four columns; the first token of an echoed prompt has none."""
    offsets = []
    for entry in entries:
        offsets.append(choice.offset)
        choice.offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{top.token: top.logprob for top in entry.top} or None for entry in entries],
        "text_offset": offsets,
    }
