"""A generation: what is asked for and what comes back.

These values are shared by the API, the router and the engine; none of them knows how the others work.
"""

import enum

import attrs

from meshnode.types.conversation import ChatMessage, OutputFormat, ToolUse
from meshnode.types.ids import RequestId

__all__ = [
    "POOLINGS",
    "CallPiece",
    "Delta",
    "FinishReason",
    "Finished",
    "GenerationEvent",
    "GenerationRequest",
    "SamplingAdvice",
    "SamplingParameters",
    "Started",
    "TokenEvent",
    "TokenLogprob",
    "Usage",
]


POOLINGS = ("mean", "cls", "last")
"""How the final states of a text become its vector: their mean, the first token's, or the last one's."""


@attrs.frozen
class SamplingParameters:
    """How the next token is chosen. Validated at the API; every field is honoured by the sampler."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # [0, 1]; keep tokens with p >= min_p * p_max
    seed: int = 0  # with the position it fixes the choice, on any node and in any batch
    presence_penalty: float = 0.0  # [-2, 2], subtracted once from the logit of every generated token
    frequency_penalty: float = 0.0  # [-2, 2], subtracted once per occurrence among generated tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, addend in [-100, 100])
    top_logprobs: int | None = None  # None: no log-probabilities; k: the chosen token's and the k best
    grammar: str | None = None  # llguidance's: only tokens it allows can be sampled
    scored: tuple[int, ...] = ()  # the prompt's tokens, if the first token is to come with their log-probabilities
    pooling: str = ""  # one of POOLINGS: the answer is no text, but one event with the prompt's vector


@attrs.frozen
class SamplingAdvice:
    """How a model likes to be sampled when nobody says. What its makers advise, or else what llama.cpp does."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05

    def applied(self, sampling: SamplingParameters) -> SamplingParameters:
        """Return `sampling` with this advice in place of its own temperature and filters."""
        return attrs.evolve(
            sampling, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p
        )


@attrs.frozen
class TokenEvent:
    """One sampled token. Log-probabilities are natural, of the unmodified distribution (OpenAI's meaning)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first
    prompt: "tuple[TokenEvent, ...]" = ()  # with the first token, if asked for: the prompt's own from its second on
    vector: bytes = b""  # instead of a token: little-endian float32 [hidden], of length 1


class FinishReason(enum.Enum):
    """Why a generation ended."""

    STOP = "stop"  # the model's end token, or a stop sequence
    LENGTH = "length"  # max_tokens or the end of the context
    TOOL_CALLS = "tool_calls"  # it has called tools and waits for their results


@attrs.frozen
class Usage:
    """Token counts of one generation."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, that needed no computing
    reasoning_tokens: int = 0  # of the completion


@attrs.frozen
class GenerationRequest:
    """One generation to run: `messages` (through the model's chat template), a raw `prompt`, or its tokens."""

    id: RequestId
    model: str  # as the caller wrote it
    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    sampling: SamplingParameters = SamplingParameters()
    max_tokens: int | None = (
        None  # None: until the model stops or the context is full; 0: the prompt is counted, or echoed
    )
    stop: tuple[str, ...] = ()
    client: str = ""  # who asks, for fairness among callers
    as_advised: bool = False  # the caller said nothing of temperature and filters: the model's advice is taken
    tools: ToolUse = attrs.field(factory=ToolUse)
    output: OutputFormat = attrs.field(factory=OutputFormat)
    thinking: bool | None = None  # whether a model that can think does; None: as its template has it
    prompt_tokens: tuple[int, ...] = ()  # instead of `prompt`: it has been encoded already
    parse_special: bool = False  # texts of control tokens in `prompt` are those tokens
    embeds: bool = False  # the answer is the prompt's vector
    truncates: bool = False  # of a prompt that is too long to embed, the beginning is taken
    echo: bool = False  # the answer begins with the prompt's text, and its log-probabilities if asked for

    @property
    def only_counts(self) -> bool:
        """Whether nothing is wanted but the number of the prompt's tokens."""
        return self.max_tokens == 0 and not self.echo


@attrs.frozen
class Started:
    """First event: the request has been admitted, the prompt counted, and a route chosen."""

    model: str
    prompt_tokens: int
    route: str  # human-readable, for the x-meshnode-route header


@attrs.frozen
class TokenLogprob:
    """A token of the answer, or of an echoed prompt, as log-probabilities report it."""

    token: str
    logprob: float | None  # None for the first token of a prompt
    raw: bytes
    top: tuple["TokenLogprob", ...] = ()


@attrs.frozen
class CallPiece:
    """A piece of a tool call. The first of a call has its id and name; arguments come in fragments of JSON text."""

    index: int  # of the call in the answer, from 0
    id: str = ""
    name: str = ""
    arguments: str = ""


@attrs.frozen
class Delta:
    """What can no longer change of an answer. In reading order: reasoning, then text, then calls."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()  # if asked for, of `tokens`
    tokens: tuple[int, ...] = ()  # that it came from, or that came without anything to show
    reasoning: str = ""  # of a thinking model
    calls: tuple[CallPiece, ...] = ()
    vector: bytes = b""  # the whole answer of a request that embeds: little-endian float32 [hidden], of length 1


@attrs.frozen
class Finished:
    """Last event of a generation that ended well. A failure is an exception instead."""

    reason: FinishReason
    usage: Usage
    stop_sequence: str | None = None
    route: str = ""  # the last one, if a loss changed it
    recoveries: int = 0  # losses on the way
    pause: float = 0.0  # seconds without a token because of them, together


GenerationEvent = Started | Delta | Finished
