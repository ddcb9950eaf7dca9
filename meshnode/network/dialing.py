"""Whom to connect to, and when to try again."""

from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import Generic, TypeVar

import attrs
import trio

from meshnode.types.ids import PeerId

__all__ = ["Dialling", "peer_of"]

K = TypeVar("K", bound=Hashable)

_MAX_KEYS = 4096


@attrs.define
class _Tried:
    pause: float
    again: float  # trio.current_time() of the next try
    failures: int  # in a row


@attrs.define(eq=False)
class Dialling(Generic[K]):
    """Remembers failures, of peers or else: each doubles the pause before the next try; success forgets them."""

    random: Random = attrs.field(factory=Random)
    first_pause: float = 1.0  # seconds
    longest_pause: float = 60.0  # seconds
    _tried: dict[K, _Tried] = attrs.field(factory=dict, init=False)

    def due(self, keys: Iterable[K]) -> list[K]:
        """Return those that may be tried now."""
        now = trio.current_time()
        return [key for key in keys if key not in self._tried or self._tried[key].again <= now]

    def failed(self, key: K) -> int:
        """Note that a try came to nothing; return how many have in a row."""
        before = self._tried.pop(key, None)
        pause = self.first_pause if before is None else min(self.longest_pause, before.pause * 2)
        jitter = self.random.uniform(0.75, 1.25)  # a node that restarts must not meet all of its peers at once
        failures = 1 if before is None else before.failures + 1
        self._tried[key] = _Tried(pause, trio.current_time() + pause * jitter, failures)
        if len(self._tried) > _MAX_KEYS:
            del self._tried[next(iter(self._tried))]
        return failures

    def reached(self, key: K) -> None:
        """Note that a try came to something."""
        self._tried.pop(key, None)


def peer_of(addresses: Sequence[str]) -> PeerId | None:
    """Return the peer that multiaddrs end with, if they name one."""
    for address in addresses:
        _, found, peer = address.rpartition("/p2p/")
        if found and peer:
            return PeerId(peer)
    return None
