"""Chooses the next token from logits, the same on every node and in every batch.

The choice is a function of the logits, the parameters, the position and the tokens generated so far. Randomness is one uniform
number per position, derived from (seed, position) alone, so a session that moves to another node goes on with the same tokens.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from meshnode.types.generation import SamplingParameters, TokenEvent

__all__ = ["sample", "score", "uniform"]

Probabilities = npt.NDArray[np.float64]

_LEAST = torch.finfo(torch.float32).min

_CANDIDATES = 256
"""Tokens looked at first when truncating; more only when they do not hold enough of the probability."""


def uniform(seed: int, position: int) -> float:
    """Return the uniform number in [0, 1) that decides at `position`: Philox 4x64 keyed by the seed (Salmon et al. 2011)."""
    bits = int(np.random.Philox(key=seed & (1 << 64) - 1, counter=position).random_raw())
    return (bits >> 11) * 2.0**-53


def sample(
    logits: torch.Tensor,
    parameters: SamplingParameters,
    *,
    position: int,
    history: Sequence[int],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> TokenEvent:
    """Choose a token from float32 logits [vocabulary] for `position` (0-based, counted from the start of the prompt).

    Order: biases and penalties, then `allowed` (bool [vocabulary], None is all, else at least one), temperature, and top_k,
    top_p and min_p. `history` are the tokens generated so far.
    Log-probabilities are those of the unmodified logits. Raises nothing for any finite logits; NaN counts as impossible.
    """
    if torch.isnan(logits.max()):  # which a NaN anywhere makes it; looking at each takes ten times as long
        logits = torch.nan_to_num(logits, nan=-torch.inf)
    adjusted = _adjusted(logits, parameters, history)
    if allowed is not None:
        possible = torch.from_numpy(allowed).to(adjusted.device)
        adjusted = torch.where(
            possible, adjusted.clamp(min=_LEAST), -torch.inf
        )  # also where the model excludes them all
    if parameters.temperature == 0:
        token = int(adjusted.argmax())
    else:
        token = _draw(adjusted, parameters, uniform(parameters.seed, position))
    if parameters.top_logprobs is None:
        return TokenEvent(token)
    return score(logits, token, parameters.top_logprobs)


def score(logits: torch.Tensor, token: int, top: int) -> TokenEvent:
    """Return a token with its log-probability by logits [vocabulary], and the `top` best tokens with theirs."""
    logprobs = logits.double().log_softmax(-1)
    values, tokens = logprobs.topk(min(top, len(logprobs)))
    best = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenEvent(token, float(logprobs[token]), best)


def _adjusted(logits: torch.Tensor, parameters: SamplingParameters, history: Sequence[int]) -> torch.Tensor:
    """Apply logit_bias and the penalties (OpenAI's: subtract presence once and frequency per occurrence)."""
    changes: dict[int, float] = {token: bias for token, bias in parameters.logit_bias if token < len(logits)}
    if parameters.presence_penalty or parameters.frequency_penalty:
        for token, count in Counter(history).items():
            penalty = parameters.presence_penalty + parameters.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
    if not changes:
        return logits
    adjusted = logits.clone()
    tokens = torch.tensor(list(changes))
    adjusted[tokens] += torch.tensor(list(changes.values()), dtype=adjusted.dtype)
    return adjusted


def _draw(logits: torch.Tensor, parameters: SamplingParameters, number: float) -> int:
    """Invert the cumulative distribution over the candidates, best first, at `number`."""
    scaled = logits.double().div_(parameters.temperature)
    total = 0.0 if parameters.top_k else float(scaled.logsumexp(-1))
    count = min(len(scaled), parameters.top_k or _CANDIDATES)
    while True:
        best = scaled.topk(count)
        values, tokens = best.values.cpu().numpy(), best.indices
        probabilities: Probabilities = np.exp(values - (values[0] if parameters.top_k else total))
        if parameters.top_k or count == len(scaled) or _enough(probabilities, parameters, number):
            break
        count = min(len(scaled), count * 16)
    if parameters.top_k:
        probabilities = probabilities / probabilities.sum()
    kept = probabilities > 0
    if parameters.top_p < 1:
        # The token that crosses the border is in.
        kept &= probabilities.cumsum() - probabilities < parameters.top_p
    if parameters.min_p > 0:
        kept &= probabilities >= parameters.min_p * probabilities[0]
    kept[0] = True
    cumulative = (probabilities * kept).cumsum()
    whole = parameters.top_p == 1 and parameters.min_p == 0 and not parameters.top_k
    mass = 1.0 if whole else float(cumulative[-1])
    index = int(np.searchsorted(cumulative, mass * number, side="right"))
    return int(tokens[min(index, int(kept.nonzero()[0][-1]))])


def _enough(probabilities: Probabilities, parameters: SamplingParameters, number: float) -> bool:
    """Say whether tokens beyond these candidates could not be chosen."""
    covered, last, first = float(probabilities.sum()), float(probabilities[-1]), float(probabilities[0])
    if parameters.top_p < 1 or parameters.min_p > 0:
        return (parameters.top_p < 1 and covered >= parameters.top_p) or last < parameters.min_p * first
    return covered > number
