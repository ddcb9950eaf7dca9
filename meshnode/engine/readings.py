"""What is read off a prompt while it goes through the head, beside the token after it: its vector, or how likely it was.

A reading follows its session: rows come in order, and rows that come again take back what came after them.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import attrs
import numpy as np
import torch

from meshnode.engine.sampling import score
from meshnode.errors import RequestError
from meshnode.types.generation import POOLINGS, SamplingParameters, TokenEvent

__all__ = ["Pooled", "Reading", "Scores", "begin_reading"]


class Reading(Protocol):
    """Takes what the head gives for every row of a prompt."""

    @property
    def wants(self) -> Literal["states", "all"]:
        """What of the head: the final states of all rows, or their logits."""
        ...

    @property
    def most_rows(self) -> int:
        """How many rows may come at a time."""
        ...

    def add(self, position: int, outputs: torch.Tensor) -> None:
        """Take float32 [n, hidden] states or [n, vocabulary] logits of the rows from `position` on."""
        ...

    def told(self, sample: Callable[[], TokenEvent]) -> TokenEvent:
        """Return what the whole prompt gives; `sample` chooses the token after it."""
        ...


def begin_reading(sampling: SamplingParameters, history: Sequence[int]) -> Reading | None:
    """Return the reading a session's sampling asks for, if it asks for one and there is no answer yet."""
    if history:
        return None
    if sampling.pooling:
        return Pooled(sampling.pooling)
    return Scores(sampling.scored, sampling.top_logprobs or 0) if sampling.scored else None


@attrs.define(eq=False)
class Pooled:
    """A text's vector: the mean of its final states, or the first or the last of them.

    Sums are taken in float64, so that in how many pieces a text came makes no difference that float32 shows.
    """

    kind: str = attrs.field(validator=attrs.validators.in_(POOLINGS))
    _ends: list[tuple[int, torch.Tensor]] = attrs.field(factory=list, init=False)  # (rows so far, what they make)

    @property
    def wants(self) -> Literal["states"]:
        """The final states."""
        return "states"

    @property
    def most_rows(self) -> int:
        """No less than any step has."""
        return 1 << 30

    def add(self, position: int, outputs: torch.Tensor) -> None:
        """Take float32 [n, hidden]. Raises RequestError for rows that do not follow those that are there."""
        while self._ends and self._ends[-1][0] > position:
            self._ends.pop()
        there, so_far = self._ends[-1] if self._ends else (0, None)
        if there != position:
            raise RequestError(f"rows from {position} on do not follow the {there} that have been read")
        states = outputs.double()
        if self.kind == "last":
            made = states[-1]
        elif self.kind == "cls":
            made = states[0] if so_far is None else so_far
        else:
            made = states.sum(0) if so_far is None else so_far + states.sum(0)
        self._ends.append((position + len(states), made))

    def told(self, sample: Callable[[], TokenEvent]) -> TokenEvent:  # noqa: ARG002  # no token is wanted
        """Return the vector, of length 1, in place of a token."""
        _, made = self._ends[-1]
        length = made.norm()
        unit = made / length if length > 0 else made
        return TokenEvent(0, vector=unit.float().cpu().numpy().astype(np.dtype("<f4")).tobytes())


@attrs.define(eq=False)
class Scores:
    """How likely each token of the prompt was after those before it, and which would have been likelier."""

    tokens: tuple[int, ...]
    top: int
    _scores: list[TokenEvent] = attrs.field(factory=list, init=False)

    @property
    def wants(self) -> Literal["all"]:
        """The logits."""
        return "all"

    @property
    def most_rows(self) -> int:
        """Few: logits in double precision have 8 bytes per token of the vocabulary."""
        return 64

    def add(self, position: int, outputs: torch.Tensor) -> None:
        """Take float32 [n, vocabulary]. Raises RequestError for rows that do not follow those that are there."""
        if position > len(self._scores):
            raise RequestError(f"rows from {position} on do not follow the {len(self._scores)} that have been read")
        del self._scores[position:]
        following = self.tokens[position + 1 : position + 1 + len(outputs)]
        self._scores += [score(row, token, self.top) for row, token in zip(outputs, following, strict=False)]

    def told(self, sample: Callable[[], TokenEvent]) -> TokenEvent:
        """Return the token after the prompt, with the prompt's scores."""
        return attrs.evolve(sample(), prompt=tuple(self._scores))
