"""The request body of chat completions. Unknown fields are refused by name; nothing is accepted and ignored."""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from meshnode.api.openai.messages import Message, flatten
from meshnode.errors import RequestError
from meshnode.types.generation import GenerationRequest, SamplingParameters
from meshnode.types.ids import RequestId

__all__ = ["ChatRequest", "StreamOptions"]

_MAX_STOPS, _MAX_STOP_LENGTH, _MAX_CHOICES, _MAX_BIASES = 16, 256, 8, 1024
_LAST_TOKEN = (1 << 31) - 1  # no vocabulary is larger; an id beyond would not fit the worker's frames
_SEED = 1 << 63  # seeds are signed 64-bit numbers, OpenAI's and ours
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""Known fields for what this node cannot do, and the values of them that ask for nothing."""


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a streamed reply."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = None  # padding against guessing lengths; we add none


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
    # Labels and hints of OpenAI's that change no answer, there or here. Without tools no call can be parallel.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None
    # Taken when they ask for nothing, else refused: _HARMLESS.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    reasoning_effort: str | None = None
    response_format: Any = None
    service_tier: str | None = None
    store: bool | None = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: str | None = None
    web_search_options: Any = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def generations(self, client: str, request: RequestId) -> list[GenerationRequest]:
        """Return one generation per choice. Raises RequestError naming the field that is wrong or not supported."""
        self._refuse_unsupported()
        messages = flatten(self.messages)
        seed = secrets.randbits(63) if self.seed is None else int(_within("seed", self.seed, -_SEED, _SEED - 1))
        stops, limit, count = self._stops(), self._max_tokens(), int(_within("n", _or(self.n, 1), 1, _MAX_CHOICES))
        return [
            GenerationRequest(
                id=request if index == 0 else RequestId(f"{request}-{index}"),
                model=self.model,
                messages=messages,
                sampling=self._sampling(_derived(seed, index)),
                as_advised=all(value is None for value in (self.temperature, self.top_p, self.top_k, self.min_p)),
                max_tokens=limit,
                stop=stops,
                client=client,
            )
            for index in range(count)
        ]

    def _refuse_unsupported(self) -> None:
        for name, harmless in _HARMLESS.items():
            value = getattr(self, name)
            if value not in harmless:
                accepted = [msgspec.json.encode(value).decode() for value in harmless if value not in (None, [])]
                rest = f"; {' and '.join(accepted)} {'are' if len(accepted) > 1 else 'is'}" if accepted else ""
                raise RequestError(f"{_asked(name, value)} is not supported by this node{rest}", param=name)
        if self.stream_options is not None and not self.stream:
            raise RequestError("'stream_options' goes with 'stream': true", param="stream_options")

    def _sampling(self, seed: int) -> SamplingParameters:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("'top_logprobs' goes with 'logprobs': true", param="top_logprobs")
        top = None if not self.logprobs else int(_within("top_logprobs", self.top_logprobs or 0, 0, 20))
        return SamplingParameters(
            temperature=_within("temperature", _or(self.temperature, 1.0), 0, 2),
            top_p=_within("top_p", _or(self.top_p, 1.0), 0, 1, above=True),
            top_k=int(_within("top_k", _or(self.top_k, 0), 0, _LAST_TOKEN)),
            min_p=_within("min_p", _or(self.min_p, 0.0), 0, 1),
            seed=seed,
            presence_penalty=_within("presence_penalty", _or(self.presence_penalty, 0.0), -2, 2),
            frequency_penalty=_within("frequency_penalty", _or(self.frequency_penalty, 0.0), -2, 2),
            logit_bias=self._biases(),
            top_logprobs=top,
        )

    def _biases(self) -> tuple[tuple[int, float], ...]:
        biases = self.logit_bias or {}
        if len(biases) > _MAX_BIASES:  # each costs time at every token
            raise RequestError(f"'logit_bias' has {len(biases)} entries; {_MAX_BIASES} are allowed", param="logit_bias")
        pairs: dict[int, float] = {}
        for token, bias in biases.items():
            if not (token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) <= _LAST_TOKEN):
                raise RequestError(
                    f"'logit_bias' maps token ids to numbers; {token[:20]!r} is not a token id", param="logit_bias"
                )
            pairs[int(token)] = _within("logit_bias", bias, -100, 100)
        return tuple(pairs.items())

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
        return None if value is None else int(_within(name, value, 1, _LAST_TOKEN))


def _asked(name: str, value: object) -> str:
    """Name the field, with its value where that is short."""
    kind = value.get("type") if isinstance(value, dict) else value
    shown = msgspec.json.encode(kind).decode() if isinstance(kind, str | bool) else ""
    return f"'{name}': {shown[:60]}" if shown else f"'{name}'"


def _derived(seed: int, index: int) -> int:
    """Return the seed of a choice: the first has the request's, the others one that no neighbouring seed's choice has."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _or(value: float | None, default: Any) -> Any:  # noqa: ANN401
    return default if value is None else value


def _within(name: str, value: float, low: float, high: float, *, above: bool = False) -> float:
    """Return `value` if it lies in [low, high], or with `above` in (low, high]."""
    if low <= value <= high and not (above and value == low):  # false for NaN and the infinities too
        return value
    bounds = f"above {low} and at most {high}" if above else f"from {low} to {high}"
    shown = value if -1e30 < value < 1e30 else "a number of that size"
    raise RequestError(f"{name!r} must be {bounds}, not {shown}", param=name)
