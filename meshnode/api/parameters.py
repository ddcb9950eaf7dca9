"""Checks of the numbers that requests carry, alike for every surface."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from meshnode.errors import RequestError

__all__ = ["LAST_TOKEN", "biases", "check_count", "choice_seeds", "default", "stops", "within"]

_MAX_PARTS = (
    10_000  # a body of empty ones could have 280,000, which is seconds of work before the first check of length
)
_MAX_STOPS, _MAX_STOP_LENGTH, _MAX_BIASES = 16, 256, 1024
LAST_TOKEN = (1 << 31) - 1  # no vocabulary is larger; an id beyond would not fit the worker's frames
_SEED = 1 << 63  # seeds are signed 64-bit numbers, OpenAI's and ours


def default(value: float | None, otherwise: Any) -> Any:  # noqa: ANN401
    """Return `value`, or what counts where it is not given."""
    return otherwise if value is None else value


def within(name: str, value: float, low: float, high: float, *, above: bool = False) -> float:
    """Return `value` if it lies in [low, high], or with `above` in (low, high]. Raises RequestError."""
    if low <= value <= high and not (above and value == low):  # false for NaN and the infinities too
        return value
    bounds = f"above {low} and at most {high}" if above else f"from {low} to {high}"
    shown = value if -1e30 < value < 1e30 else "a number of that size"
    raise RequestError(f"{name!r} must be {bounds}, not {shown}", param=name)


def check_count(name: str, messages: Sequence[object], *inner: str) -> None:
    """Raise RequestError for too many messages, or too many with what the lists called `inner` hold in them."""
    count = len(messages)
    if count <= _MAX_PARTS:
        for message in messages:
            for field in inner:
                value = message.get(field) if isinstance(message, Mapping) else getattr(message, field, None)
                count += len(value) if isinstance(value, list) else 0
    if count > _MAX_PARTS:
        raise RequestError(f"{name!r} holds {count} messages and parts; {_MAX_PARTS} are allowed", param=name)


def choice_seeds(seed: int | None, count: int) -> list[int]:
    """Return the seeds of `count` choices: the first has the request's, the others ones that no neighbouring seed's have."""
    first = secrets.randbits(63) if seed is None else int(within("seed", seed, -_SEED, _SEED - 1))
    return [first, *(_derived(first, index) for index in range(1, count))]


def _derived(seed: int, index: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stops(given: str | Sequence[str] | None, name: str = "stop") -> tuple[str, ...]:
    """Return stop sequences. Raises RequestError for too many, too long, or empty ones."""
    found = [given] if isinstance(given, str) else list(given or [])
    if len(found) > _MAX_STOPS:
        raise RequestError(f"{name!r} holds {len(found)} sequences; {_MAX_STOPS} are allowed", param=name)
    if any(not 1 <= len(stop) <= _MAX_STOP_LENGTH for stop in found):
        raise RequestError(f"every sequence of {name!r} has 1 to {_MAX_STOP_LENGTH} characters", param=name)
    return tuple(found)


def biases(given: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """Return logit biases by token. Raises RequestError."""
    given = given or {}
    if len(given) > _MAX_BIASES:  # each costs time at every token
        raise RequestError(f"'logit_bias' has {len(given)} entries; {_MAX_BIASES} are allowed", param="logit_bias")
    pairs: dict[int, float] = {}
    for token, bias in given.items():
        if not (token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) <= LAST_TOKEN):
            raise RequestError(
                f"'logit_bias' maps token ids to numbers; {token[:20]!r} is not a token id", param="logit_bias"
            )
        pairs[int(token)] = within("logit_bias", bias, -100, 100)
    return tuple(pairs.items())
