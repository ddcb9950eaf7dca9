"""Ollama's `options`: how an answer is sampled, among much that belongs to the machine it runs on."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from meshnode.api.hints import hint
from meshnode.api.parameters import LAST_TOKEN, choice_seeds, default, stops, within
from meshnode.errors import RequestError
from meshnode.types.generation import SamplingParameters

__all__ = ["KeepAlive", "Options"]

_NEUTRAL: Mapping[str, float] = {"repeat_penalty": 1.0, "typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0}
"""What the sampler cannot do, and the value that asks for nothing."""

_MACHINE = hint("the node's settings say this, such as engine.context_length and engine.threads")
_Number = Annotated[int | None, _MACHINE]
_Switch = Annotated[bool | None, _MACHINE]
_Mirostat = Annotated[float | None, hint("mirostat itself is refused")]
KeepAlive = Annotated[str | float | None, hint("a model stays loaded until another needs its memory")]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options. What is not given has Ollama's default where another is given, else all is as the model's makers advise."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None  # below 0: any
    num_predict: int | None = None  # below 1: no limit
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_last_n: int | None = None  # penalties look at the whole answer here
    # Taken when they ask for nothing, else refused: _NEUTRAL.
    repeat_penalty: float | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: int | None = None
    mirostat_tau: _Mirostat = None
    mirostat_eta: _Mirostat = None
    num_ctx: _Number = None
    num_keep: _Number = None
    num_batch: _Number = None
    num_gpu: _Number = None
    main_gpu: _Number = None
    num_thread: _Number = None
    numa: _Switch = None
    low_vram: _Switch = None
    f16_kv: _Switch = None
    logits_all: _Switch = None
    vocab_only: _Switch = None
    use_mmap: _Switch = None
    use_mlock: _Switch = None
    embedding_only: _Switch = None
    penalize_newline: Annotated[bool | None, hint("penalties treat the ends of lines like all else")] = None

    @property
    def leaves_sampling_to_the_model(self) -> bool:
        """Whether nothing is said of temperature and filters."""
        return all(value is None for value in (self.temperature, self.top_k, self.top_p, self.min_p))

    @property
    def max_tokens(self) -> int | None:
        """How long the answer may be; None is until the model stops or the context is full. Raises RequestError."""
        if self.num_predict is None or self.num_predict < 1:
            return None
        return int(within("options.num_predict", self.num_predict, 1, LAST_TOKEN))

    def stop_sequences(self) -> tuple[str, ...]:
        """Return where an answer ends. Raises RequestError."""
        return stops(self.stop, "options.stop")

    def sampling(self, top_logprobs: int | None) -> SamplingParameters:
        """Return how to sample. Raises RequestError naming the option that is wrong or not supported."""
        self._refuse_unsupported()
        (seed,) = choice_seeds(None if self.seed is None or self.seed < 0 else self.seed, 1)
        return SamplingParameters(
            temperature=_within("temperature", self.temperature, 0.8, 0, 2),
            top_k=int(_within("top_k", None if self.top_k is None else max(0, self.top_k), 40, 0, LAST_TOKEN)),
            top_p=_within("top_p", self.top_p, 0.9, 0, 1, above=True),
            min_p=_within("min_p", self.min_p, 0.0, 0, 1),
            seed=seed,
            presence_penalty=_within("presence_penalty", self.presence_penalty, 0.0, -2, 2),
            frequency_penalty=_within("frequency_penalty", self.frequency_penalty, 0.0, -2, 2),
            top_logprobs=top_logprobs,
        )

    def _refuse_unsupported(self) -> None:
        for name, neutral in _NEUTRAL.items():
            if default(getattr(self, name), neutral) != neutral:
                raise RequestError(
                    f"'options.{name}' is not supported by this node; {neutral} is", param=f"options.{name}"
                )
        penalised = self.presence_penalty or self.frequency_penalty
        if penalised and self.repeat_last_n is not None and self.repeat_last_n != -1:
            raise RequestError(
                "penalties look at the whole answer here; 'options.repeat_last_n' is -1 with them",
                param="options.repeat_last_n",
            )


def _within(name: str, value: float | None, otherwise: float, low: float, high: float, **bounds: Any) -> float:  # noqa: ANN401
    return within(f"options.{name}", default(value, otherwise), low, high, **bounds)
