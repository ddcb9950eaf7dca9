"""What one generation knows. Everything needed to go on elsewhere is here: the prompt and the tokens so far.

Since rows are invariant and sampling is a function of (seed, position), whoever goes on gives the tokens there would have been.
"""

import math
from collections.abc import Awaitable, Callable, Sequence

import attrs
import numpy as np
import trio

from meshnode.engine.prefixes import names_in
from meshnode.types.generation import SamplingParameters, TokenEvent
from meshnode.types.ids import PeerId, SessionId
from meshnode.types.routes import Route, Stage

__all__ = ["Session", "Take"]

Take = Callable[[TokenEvent], Awaitable[bool]]
"""Hears each token once; returns whether more are wanted."""


@attrs.define(eq=False)
class Session:
    """Lives and dies with the task of its request."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParameters
    end_tokens: frozenset[int]
    generated: list[int] = attrs.field(factory=list)
    vocabulary: int = 1 << 32  # token ids are below it
    id: SessionId = attrs.field(default=SessionId(""), init=False)  # given by its coordinator
    asker: str = ""  # another node whose request it is
    in_one_step: bool = False  # the model has to see the whole prompt at once
    rings: bool = attrs.field(
        default=True, init=False
    )  # workers hand tokens on; not on a route where they lost each other
    cached_tokens: int | None = attrs.field(default=None, init=False)  # of the prompt, that needed no computing
    pages: Sequence[bytes] = attrs.field(default=(), init=False)  # names of the full pages of the tokens so far
    route: Route | None = attrs.field(default=None, init=False)  # the newest
    recoveries: int = attrs.field(default=0, init=False)
    losses_in_a_row: int = attrs.field(default=0, init=False)  # without a token between them
    pause: float = attrs.field(default=0.0, init=False)  # seconds lost to recoveries
    _sources: set[tuple[int, PeerId]] = attrs.field(factory=set, init=False)  # who has computed, from which block on
    _lost_at: float | None = attrs.field(default=None, init=False)
    _token_at: float | None = attrs.field(default=None, init=False)

    @property
    def reads_prompt(self) -> bool:
        """Whether something is wanted of every row of the prompt, so that none can be skipped."""
        return bool(self.sampling.pooling or (self.sampling.scored and not self.generated))

    @property
    def length(self) -> int:
        """Tokens so far, the prompt's included."""
        return len(self.prompt) + len(self.generated)

    @property
    def capacity(self) -> int:
        """Positions of KV cache it may need."""
        return len(self.prompt) + (0 if self.sampling.pooling else self.max_tokens)

    @property
    def is_complete(self) -> bool:
        """Whether the last token is an end token, or as many as asked for are there."""
        ended = bool(self.generated) and self.generated[-1] in self.end_tokens
        return ended or len(self.generated) >= self.max_tokens

    def knows(self, event: TokenEvent) -> bool:
        """Whether all tokens that `event` names are some of the model, whatever rows they were sampled from."""
        scored = (event, *event.prompt)
        named = [each.token for each in scored] + [token for each in scored for token, _ in each.top]
        return all(0 <= token < self.vocabulary for token in named)

    def is_possible(self, event: TokenEvent) -> bool:
        """Whether an honest head may have sampled `event` from rows that are right; its tokens are known."""
        if self.sampling.pooling or event.vector:
            return bool(self.sampling.pooling) and _is_vector(event.vector)
        scored = () if self.generated else self.sampling.scored[1:]
        if tuple(entry.token for entry in event.prompt) != scored:
            return False
        return all(map(self._is_scored, (event, *event.prompt)))

    def _is_scored(self, event: TokenEvent) -> bool:
        if self.sampling.top_logprobs is None:
            return True
        numbers = (event.logprob, *(logprob for _, logprob in event.top))
        known = all(number is not None and -math.inf <= number <= 0 for number in numbers)
        return known and len(event.top) <= self.sampling.top_logprobs

    def tokens(self, begin: int, end: int) -> tuple[int, ...]:
        """Return the tokens at positions `begin` to `end` (excluded)."""
        return (*self.prompt, *self.generated)[begin:end] if begin < len(self.prompt) else self._answer(begin, end)

    def _answer(self, begin: int, end: int) -> tuple[int, ...]:
        return tuple(self.generated[begin - len(self.prompt) : end - len(self.prompt)])

    def goes_over(self, route: Route) -> None:
        """Note who computes from now on."""
        self.route = route
        self._sources |= {(stage.blocks.start, stage.peer) for stage in route.stages if stage.blocks is not None}

    def pages_for(self, stage: Stage) -> tuple[bytes, ...]:
        """Return what its pages are called at a stage: others for each set of peers whose rows have gone into them.

        So what a liar has made others keep is found by nobody who asks without the liar.
        """
        begin = 0 if stage.blocks is None else stage.blocks.start
        sources = sorted({peer for start, peer in self._sources if start < begin})
        return names_in(" ".join(sources).encode(), self.pages) if sources else tuple(self.pages)

    def begun(self, cached: int) -> None:
        """Note how many positions were there already; only of the first attempt, as a replay is nothing the reader asked for."""
        if self.cached_tokens is None:
            self.cached_tokens = min(cached, len(self.prompt))

    def lost(self) -> None:
        """Note that a stage or worker was lost."""
        self.recoveries += 1
        self.losses_in_a_row += 1
        if self._lost_at is None:  # the reader has waited since the last token, not since the loss was noticed
            self._lost_at = trio.current_time() if self._token_at is None else self._token_at

    def token_came(self, token: int) -> None:
        """Take a token; the first after a loss ends the pause."""
        self.generated.append(token)
        self.losses_in_a_row = 0
        self._token_at = trio.current_time()
        if self._lost_at is not None:
            self.pause += trio.current_time() - self._lost_at
            self._lost_at = None


def _is_vector(raw: bytes) -> bool:
    """Whether these are finite float32 numbers."""
    return bool(raw) and len(raw) % 4 == 0 and bool(np.isfinite(np.frombuffer(raw, "<f4")).all())
