"""The request body of chat completions. Unknown fields are refused by name; nothing is accepted and ignored."""

import math
import secrets
from typing import Annotated, Any, Literal

import msgspec

from meshnode.errors import RequestError
from meshnode.types.generation import ChatMessage, GenerationRequest, SamplingParameters
from meshnode.types.ids import new_request_id

__all__ = ["ChatRequest", "Message", "StreamOptions", "TextPart"]

_MAX_STOPS, _MAX_STOP_LENGTH, _MAX_CHOICES = 16, 256, 8
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class TextPart(msgspec.Struct, frozen=True, tag="text", tag_field="type", forbid_unknown_fields=True):
    """A text part of a message."""

    text: str


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. Roles that need tools are refused until tools are there."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None

    def flat(self) -> ChatMessage:
        """Join the parts; `developer` is OpenAI's newer name for `system`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        return ChatMessage("system" if self.role == "developer" else self.role, content, self.name)


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a streamed reply."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class _TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text"]


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    model: _Name
    messages: list[Message]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    n: int | None = None
    # Labels and hints that change no answer: taken note of by nobody, as OpenAI documents them.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Values that say what happens anyway; any other value is refused.
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    response_format: _TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Annotated[list[Any], msgspec.Meta(max_length=0)] | None = None

    def choices(self) -> int:
        """Return how many answers are asked for."""
        count = 1 if self.n is None else self.n
        return int(_within("n", count, 1, _MAX_CHOICES))

    def generations(self, client: str) -> list[GenerationRequest]:
        """Return one generation per choice. Raises RequestError naming the field that is out of range."""
        if not self.messages:
            raise RequestError("'messages' must not be empty", param="messages")
        if self.stream_options is not None and not self.stream:
            raise RequestError("'stream_options' goes with 'stream': true", param="stream_options")
        messages = tuple(message.flat() for message in self.messages)
        seed = secrets.randbits(63) if self.seed is None else self.seed
        stops, limit = self._stops(), self._max_tokens()
        return [
            GenerationRequest(
                id=new_request_id(),
                model=self.model,
                messages=messages,
                sampling=self._sampling(seed + index),
                max_tokens=limit,
                stop=stops,
                client=client,
            )
            for index in range(self.choices())
        ]

    def _sampling(self, seed: int) -> SamplingParameters:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("'top_logprobs' goes with 'logprobs': true", param="top_logprobs")
        top = None if not self.logprobs else int(_within("top_logprobs", self.top_logprobs or 0, 0, 20))
        return SamplingParameters(
            temperature=_within("temperature", _or(self.temperature, 1.0), 0, 2),
            top_p=_within("top_p", _or(self.top_p, 1.0), 1e-9, 1),
            top_k=int(_within("top_k", _or(self.top_k, 0), 0, 1 << 20)),
            min_p=_within("min_p", _or(self.min_p, 0.0), 0, 1),
            seed=seed,
            presence_penalty=_within("presence_penalty", _or(self.presence_penalty, 0.0), -2, 2),
            frequency_penalty=_within("frequency_penalty", _or(self.frequency_penalty, 0.0), -2, 2),
            logit_bias=self._biases(),
            top_logprobs=top,
        )

    def _biases(self) -> tuple[tuple[int, float], ...]:
        pairs = []
        for token, bias in (self.logit_bias or {}).items():
            if not token.isdecimal():
                raise RequestError(
                    f"'logit_bias' maps token ids to numbers; {token[:20]!r} is not a token id", param="logit_bias"
                )
            pairs.append((int(token), _within("logit_bias", bias, -100, 100)))
        return tuple(pairs)

    def _stops(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MAX_STOPS:
            raise RequestError(f"'stop' holds {len(stops)} sequences; {_MAX_STOPS} are allowed", param="stop")
        if any(not 1 <= len(stop) <= _MAX_STOP_LENGTH for stop in stops):
            raise RequestError(f"every sequence of 'stop' has 1 to {_MAX_STOP_LENGTH} characters", param="stop")
        return tuple(stops)

    def _max_tokens(self) -> int | None:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("give 'max_completion_tokens' or 'max_tokens', not both", param="max_tokens")
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        value = _or(self.max_completion_tokens, self.max_tokens)
        return None if value is None else int(_within(name, value, 1, 1 << 31))


def _or(value: float | None, default: Any) -> Any:  # noqa: ANN401
    return default if value is None else value


def _within(name: str, value: float, low: float, high: float) -> float:
    if math.isnan(value) or not low <= value <= high:
        bound = f"from {low:g} to {high:g}" if low != 1e-9 else f"above 0 and at most {high:g}"
        raise RequestError(f"{name!r} must be {bound}, not {value:g}", param=name)
    return value
