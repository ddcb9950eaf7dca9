"""Whom to connect to, and when to try again."""

from collections.abc import Iterable, Sequence
from random import Random

import attrs
import trio

from meshnode.types.ids import PeerId

__all__ = ["Dialling", "peer_of"]

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between tries to reach one peer
_MAX_PEERS = 4096


@attrs.define
class _Tried:
    pause: float
    again: float  # trio.current_time() of the next try


@attrs.define(eq=False)
class Dialling:
    """Remembers failures: each doubles the pause before that peer is tried again; success forgets them."""

    random: Random = attrs.field(factory=Random)
    _tried: dict[PeerId, _Tried] = attrs.field(factory=dict, init=False)

    def due(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Return those that may be tried now."""
        now = trio.current_time()
        return [peer for peer in peers if peer not in self._tried or self._tried[peer].again <= now]

    def failed(self, peer: PeerId) -> None:
        """Note that a peer could not be reached."""
        before = self._tried.pop(peer, None)
        pause = _FIRST_PAUSE if before is None else min(_LONGEST_PAUSE, before.pause * 2)
        jitter = self.random.uniform(0.75, 1.25)  # a node that restarts must not meet all of its peers at once
        self._tried[peer] = _Tried(pause, trio.current_time() + pause * jitter)
        if len(self._tried) > _MAX_PEERS:
            del self._tried[next(iter(self._tried))]

    def reached(self, peer: PeerId) -> None:
        """Note that a peer was reached."""
        self._tried.pop(peer, None)


def peer_of(addresses: Sequence[str]) -> PeerId | None:
    """Return the peer that multiaddrs end with, if they name one."""
    for address in addresses:
        _, found, peer = address.rpartition("/p2p/")
        if found and peer:
            return PeerId(peer)
    return None
