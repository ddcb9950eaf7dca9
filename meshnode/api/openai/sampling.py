"""The fields of OpenAI's that say how an answer is sampled, alike for chat and plain completions."""

from typing import Annotated, Literal

import msgspec

from meshnode.api.hints import Label, hint
from meshnode.api.parameters import LAST_TOKEN, biases, choice_seeds, default, stops, within
from meshnode.types.generation import SamplingParameters

__all__ = ["CacheOptions", "SamplingFields", "StreamOptions"]

_MAX_CHOICES = 8
_CACHED = hint("every prefix is cached as long as there is room")


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a streamed reply."""

    include_usage: bool | None = False
    include_obfuscation: Annotated[
        bool | None, hint("it pads streams so that lengths tell nothing; none is padded")
    ] = None


class CacheOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hints to a cache that is there anyway, for every prefix. To fill it without an answer is not among them."""

    mode: Annotated[Literal["implicit", "explicit"] | None, _CACHED] = None
    ttl: Annotated[Literal["30m", "12h"] | None, _CACHED] = None
    prewarm: Literal[False] | None = None


class SamplingFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of completions have."""

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    user: Label = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def leaves_sampling_to_the_model(self) -> bool:
        """Whether nothing is said of temperature and filters."""
        return all(value is None for value in (self.temperature, self.top_p, self.top_k, self.min_p))

    def samplings(self, top_logprobs: int | None) -> list[SamplingParameters]:
        """Return how to sample each choice. Raises RequestError."""
        count = int(within("n", default(self.n, 1), 1, _MAX_CHOICES))
        return [self._sampling(seed, top_logprobs) for seed in choice_seeds(self.seed, count)]

    def stop_sequences(self) -> tuple[str, ...]:
        """Return where an answer ends. Raises RequestError."""
        return stops(self.stop)

    def _sampling(self, seed: int, top_logprobs: int | None) -> SamplingParameters:
        return SamplingParameters(
            temperature=within("temperature", default(self.temperature, 1.0), 0, 2),
            top_p=within("top_p", default(self.top_p, 1.0), 0, 1, above=True),
            top_k=int(within("top_k", default(self.top_k, 0), 0, LAST_TOKEN)),
            min_p=within("min_p", default(self.min_p, 0.0), 0, 1),
            seed=seed,
            presence_penalty=within("presence_penalty", default(self.presence_penalty, 0.0), -2, 2),
            frequency_penalty=within("frequency_penalty", default(self.frequency_penalty, 0.0), -2, 2),
            logit_bias=biases(self.logit_bias),
            top_logprobs=top_logprobs,
        )
