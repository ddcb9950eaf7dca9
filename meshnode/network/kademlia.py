"""Kademlia's two tables: who is near in the space of keys, and who has said that they provide something.

Maymounkov and Mazières, 2002. Peers and keys are points of 256 bits; near is what has the smaller XOR. Both tables are bounded,
and both hold hints: an address is proved when somebody there does the handshake, a provider when it provides.
"""

from collections import OrderedDict
from collections.abc import Iterable

import attrs
from blake3 import blake3

from meshnode.network.addresses import chosen, parse_address
from meshnode.types.ids import PeerId

__all__ = ["Contact", "ProviderBook", "RoutingTable", "checked_contact", "distance", "point_of"]

BUCKET = 20  # contacts per bucket, nodes that keep a record, and contacts in an answer
_MAX_ADDRESSES = 4
_MAX_KEYS = 4096
_MAX_PROVIDERS = 64  # of one key
_MAX_KEYS_PER_PEER = 512
_LIFETIME = 1800.0  # seconds that a record is kept; it is renewed three times in that


def point_of(network: str, data: bytes) -> bytes:
    """Return the point of a key or of a peer's id in the space of one network."""
    return blake3(network.encode() + b"\0" + data, derive_key_context="meshnode DHT points").digest()


def distance(first: bytes, second: bytes) -> int:
    """Return how far two points are from each other."""
    return int.from_bytes(first, "big") ^ int.from_bytes(second, "big")


@attrs.frozen
class Contact:
    """A node, and where it says it is reached."""

    peer: PeerId
    addresses: tuple[str, ...]


def checked_contact(peer: str, addresses: Iterable[str]) -> Contact | None:
    """Return a contact from what somebody said: with addresses that can be read and are that peer's, or None if none is."""
    kept = []
    for text in addresses:
        try:
            address = parse_address(text)
        except ValueError:
            continue
        if address.peer == peer:
            kept.append(str(address))
    return Contact(PeerId(peer), chosen(kept, _MAX_ADDRESSES)) if kept else None


@attrs.define(eq=False)
class RoutingTable:
    """Contacts in buckets of doubling distance. Who has been there long stays; who fails makes room."""

    _network: str
    _own: bytes  # our point
    _buckets: list[OrderedDict[PeerId, Contact]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._buckets = [OrderedDict() for _ in range(257)]

    def seen(self, contact: Contact) -> None:
        """Note a node that has spoken to us."""
        bucket = self._bucket(contact.peer)
        if contact.peer in bucket or len(bucket) < BUCKET:
            bucket[contact.peer] = contact
            bucket.move_to_end(contact.peer)

    def failed(self, peer: PeerId) -> None:
        """Forget a node that did not answer."""
        self._bucket(peer).pop(peer, None)

    def closest(self, point: bytes, count: int = BUCKET) -> list[Contact]:
        """Return those nearest to a point, the nearest first."""
        everyone = [contact for bucket in self._buckets for contact in bucket.values()]
        return sorted(everyone, key=lambda contact: distance(point, self.point(contact.peer)))[:count]

    def point(self, peer: PeerId) -> bytes:
        """Return where a peer stands."""
        return point_of(self._network, peer.encode())

    def _bucket(self, peer: PeerId) -> OrderedDict[PeerId, Contact]:
        return self._buckets[distance(self._own, self.point(peer)).bit_length()]


@attrs.define(eq=False)
class ProviderBook:
    """Who provides what, until it is too old."""

    _records: OrderedDict[bytes, OrderedDict[PeerId, tuple[float, Contact]]] = attrs.field(
        factory=OrderedDict, init=False
    )

    def add(self, point: bytes, contact: Contact, now: float) -> bool:
        """Keep a record; False when there are too many of that peer. The oldest ones make room."""
        self._expire(now)
        is_new = contact.peer not in self._records.get(point, ())
        if is_new and sum(contact.peer in each for each in self._records.values()) >= _MAX_KEYS_PER_PEER:
            return False
        providers = self._records.setdefault(point, OrderedDict())
        self._records.move_to_end(point)
        providers[contact.peer] = (now + _LIFETIME, contact)
        providers.move_to_end(contact.peer)
        if len(providers) > _MAX_PROVIDERS:
            providers.popitem(last=False)
        if len(self._records) > _MAX_KEYS:
            self._records.popitem(last=False)
        return True

    def of(self, point: bytes, now: float) -> list[Contact]:
        """Return the providers of a key, those who said so last first."""
        return [contact for until, contact in reversed(self._records.get(point, {}).values()) if until > now]

    def _expire(self, now: float) -> None:
        while self._records:
            point, providers = next(iter(self._records.items()))
            if any(until > now for until, _ in providers.values()):
                break
            del self._records[point]
