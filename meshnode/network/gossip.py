"""What nodes say about themselves, signed: each node keeps the newest record of every other. `neighbours` hands them on."""

from collections import OrderedDict
from collections.abc import Callable

import attrs
import msgspec

from meshnode.crypto.identity import Identity
from meshnode.crypto.signing import verify
from meshnode.errors import PeerMisbehaved
from meshnode.types.ids import PeerId
from meshnode.types.peers import Offer
from meshnode.wire.control_messages import SignedRecord
from meshnode.wire.tagged import UNDECODABLE

__all__ = ["MAX_PEERS", "MAX_RECORD", "GossipBook", "StaleRecord"]

MAX_RECORD = 48 << 10  # bytes of one payload; a batch stays below 64 KiB
MAX_PEERS = 4096  # records kept; the one not renewed for longest goes first, never our own
_MAX_BYTES = 32 << 20  # of all of them: strangers make identities for nothing
_TOO_OLD = 3 * 3600.0  # seconds: a record is renewed every ten minutes, and clocks may be off by an hour or two
_TOO_NEW = 2 * 3600.0


class StaleRecord(PeerMisbehaved):
    """A record that is too old or from the future by our clock: some clock is wrong, its signer's or ours."""


@attrs.define(eq=False)
class GossipBook:
    """The newest record of every node. One writer: the NetworkManager's incarnation."""

    identity: Identity
    network: str  # hash of the network's id: part of what is signed, so that records of another network are forged ones
    clock: Callable[[], float]  # Unix seconds
    floor: int = 0  # the highest sequence of an earlier run of this node
    version: int = attrs.field(default=0, init=False)  # of the book: counts its changes
    digest: int = attrs.field(default=0, init=False)  # of all records; two books with the same one say the same
    _nbytes: int = attrs.field(default=0, init=False)  # of all payloads
    # With the version that each came with; the newest comes last.
    _records: OrderedDict[PeerId, tuple[SignedRecord, Offer, int]] = attrs.field(factory=OrderedDict, init=False)
    _dead: dict[PeerId, int] = attrs.field(factory=dict, init=False)  # sequence at which a node was seen to be gone

    def publish(self, offer: Offer) -> None:
        """Sign what this node says about itself now. Raises ValueError when it is too long for one record."""
        payload = msgspec.msgpack.encode(offer)
        if len(payload) > MAX_RECORD:
            raise ValueError(
                f"an offer of {len(payload)} bytes does not fit a record of {MAX_RECORD}; load fewer models"
            )
        record = SignedRecord(offer.peer, payload, self.identity.sign(self._domain, payload))
        self._keep(record, offer)

    def accept(self, record: SignedRecord) -> Offer | None:
        """Take a record from a neighbour; return the offer if it is news.

        Raises PeerMisbehaved for one that no honest neighbour hands on: forged, malformed, too old, or from the future.
        """
        if record.signer == self.identity.peer:
            return None
        if len(record.payload) > MAX_RECORD:
            raise PeerMisbehaved(f"a record of {len(record.payload)} bytes; at most {MAX_RECORD} are allowed")
        known = self._records.get(record.signer)
        if known is not None and known[0].payload == record.payload:
            return None
        if not verify(record.signer, self._domain, record.payload, record.signature):
            raise PeerMisbehaved("a record with a wrong signature, or of another network")
        try:
            offer = msgspec.msgpack.decode(record.payload, type=Offer)
        except UNDECODABLE as error:
            raise PeerMisbehaved(f"a malformed record: {error}") from error
        if offer.peer != record.signer:
            raise PeerMisbehaved("a record about somebody else")
        age = self.clock() - offer.issued
        if not -_TOO_NEW <= age <= _TOO_OLD:
            raise StaleRecord(f"a record that is {age / 3600:.1f} hours old; is a clock wrong?")
        if known is not None and offer.sequence <= known[1].sequence:
            return None
        if offer.sequence <= self._dead.get(offer.peer, -1):
            return None
        self._keep(record, offer)
        return offer

    def offer(self, peer: PeerId) -> Offer | None:
        """Return the newest offer of a node."""
        found = self._records.get(peer)
        return None if found is None else found[1]

    def has(self, record: SignedRecord) -> bool:
        """Whether this is the newest record of its signer."""
        known = self._records.get(record.signer)
        return known is not None and known[0].payload == record.payload

    def next_sequence(self) -> int:
        """Return the sequence of our next offer: the clock in milliseconds, but always above the last one."""
        own = self.offer(self.identity.peer)
        return max(int(self.clock() * 1e3), self.floor + 1, 0 if own is None else own.sequence + 1)

    def bury(self, peer: PeerId) -> None:
        """Forget a node that is gone; only something newer than what it said last brings it back."""
        found = self._drop(peer)
        if found is not None:
            self._dead[peer] = found[1].sequence
            if len(self._dead) > MAX_PEERS:
                self._dead.pop(next(iter(self._dead)))

    def revive(self, peer: PeerId) -> None:
        """Believe again what a node says: it is connected."""
        self._dead.pop(peer, None)

    def records(self, since: int = -1) -> tuple[tuple[SignedRecord, int], ...]:
        """Return the records that are newer than a version of the book, with their sequences, our own first."""
        found = []
        for record, offer, version in reversed(self._records.values()):
            if version <= since:
                break
            found.append((record, offer.sequence))
        found.reverse()
        return tuple(sorted(found, key=lambda each: each[0].signer != self.identity.peer))

    def expire(self) -> tuple[PeerId, ...]:
        """Drop what is too old and return whose it was."""
        horizon = self.clock() - _TOO_OLD
        old = [peer for peer, (_, offer, _) in self._records.items() if offer.issued < horizon]
        for peer in old:
            self._drop(peer)
        return tuple(old)

    @property
    def _domain(self) -> str:
        return f"offer:{self.network}"

    def _drop(self, peer: PeerId) -> tuple[SignedRecord, Offer, int] | None:
        found = self._records.pop(peer, None)
        if found is not None:
            self._nbytes -= len(found[0].payload)
            self.digest ^= _digest(found[0])
        return found

    def _keep(self, record: SignedRecord, offer: Offer) -> None:
        self._drop(offer.peer)
        self.version += 1
        self._records[offer.peer] = (record, offer, self.version)
        self.digest ^= _digest(record)
        self._nbytes += len(record.payload)
        while len(self._records) > MAX_PEERS or self._nbytes > _MAX_BYTES:
            self._drop(next(peer for peer in self._records if peer != self.identity.peer))


def _digest(record: SignedRecord) -> int:
    return int.from_bytes(record.signature[:8], "little")  # as good as random, and another one for every payload
