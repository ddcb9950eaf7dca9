"""Tickets: leave to open one direct link, given over the control link, which has authenticated the peer."""

import enum
import hashlib
import secrets

import attrs
import trio

from meshnode.errors import PeerRefused
from meshnode.types.ids import PeerId

__all__ = ["Admission", "Purpose", "TicketBook"]

_MAX_TICKETS = 4096


class Purpose(enum.Enum):
    """What a link is for; activations never wait behind a long transfer."""

    ACTIVATIONS = "activations"
    BULK = "bulk"


@attrs.frozen
class Admission:
    """Who may come in, for what, and until when."""

    peer: PeerId
    purpose: Purpose
    until: float  # trio.current_time()


@attrs.define(eq=False)
class TicketBook:
    """Tickets given out and not used yet. Each is good once and for a short time; nothing about it is secret but its token."""

    lifetime: float = 30.0  # seconds
    per_peer: int = 8  # unused; a newer one takes the place of the oldest
    _given: dict[bytes, Admission] = attrs.field(factory=dict, init=False)  # by digest of the token, oldest first

    def issue(self, peer: PeerId, purpose: Purpose) -> bytes:
        """Return the token (32 bytes) of a new ticket."""
        now = trio.current_time()
        self._given = {key: given for key, given in self._given.items() if given.until > now}
        theirs = [key for key, given in self._given.items() if given.peer == peer]
        for key in (
            theirs[: max(0, len(theirs) - self.per_peer + 1)]
            or list(self._given)[: max(0, len(self) - _MAX_TICKETS + 1)]
        ):
            del self._given[key]
        token = secrets.token_bytes(32)
        self._given[_digest(token)] = Admission(peer, purpose, now + self.lifetime)
        return token

    def revoke(self, peer: PeerId) -> None:
        """Let the tickets of a peer let nobody in any more."""
        self._given = {key: given for key, given in self._given.items() if given.peer != peer}

    def redeem(self, token: bytes) -> Admission:
        """Return whom a token lets in, and let it in no more. Raises PeerRefused."""
        admission = self._given.pop(_digest(token), None)
        if admission is None or admission.until <= trio.current_time():
            raise PeerRefused("a ticket that was never given, was used already, or has expired; ask for a new one")
        return admission

    def __len__(self) -> int:
        return len(self._given)


def _digest(token: bytes) -> bytes:
    """Return the key of a token: looking it up then takes a time that says nothing about tokens."""
    return hashlib.sha256(token).digest()
