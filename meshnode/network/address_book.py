"""Addresses of peers that outlive the process. What is learnt is merged in; nobody is dropped for being away."""

from collections.abc import Sequence

import attrs

from meshnode.store.protocol import KeyValueStore
from meshnode.store.tables import Table, struct_codec, text_codec
from meshnode.types.ids import PeerId

__all__ = ["AddressBook", "KnownPeer", "open_address_book"]

_PREFIX = b"peers/"
_MAX_PEERS = 1000  # the one that has not been reached for longest goes first
_MAX_ADDRESSES = 8
_SEQUENCES = b"sequence/"
_WRITE_EVERY = 3600.0  # seconds: reaching a peer again at a known address is written this often


@attrs.frozen
class KnownPeer:
    """A peer that has been reached."""

    peer: PeerId
    addresses: tuple[str, ...]  # multiaddrs, the one that worked last first
    reached: float  # Unix seconds


@attrs.define(eq=False)
class AddressBook:
    """The peers of one network; those of another are other people."""

    _table: Table[str, KnownPeer]
    _network: str
    _known: dict[PeerId, KnownPeer]
    _sequences: Table[str, int]

    @property
    def sequence(self) -> int:
        """Return a sequence that nothing this node has said of itself is above, 0 if it has said nothing."""
        return self._sequences.get(self._network) or 0

    async def said(self, sequence: int) -> None:
        """Note a sequence: a node whose clock was set back must go on above what others have heard. Raises StoreError."""
        await self._sequences.put(self._network, sequence)

    def peers(self) -> tuple[KnownPeer, ...]:
        """Return all peers, the one reached last first."""
        return tuple(sorted(self._known.values(), key=lambda known: -known.reached))

    async def reached(self, peer: PeerId, addresses: Sequence[str], now: float) -> None:
        """Note that a peer was reached. Raises StoreError."""
        old = self._known.get(peer)
        before = old.addresses if old is not None else ()
        merged = tuple(dict.fromkeys((*addresses, *before)))[:_MAX_ADDRESSES]
        if old is not None and merged == before and now - old.reached < _WRITE_EVERY:
            return
        self._known[peer] = known = KnownPeer(peer, merged, now)
        await self._table.put(f"{self._network}/{peer}", known)
        if len(self._known) > _MAX_PEERS:
            oldest = min(self._known.values(), key=lambda each: each.reached).peer
            del self._known[oldest]
            await self._table.delete(f"{self._network}/{oldest}")


async def open_address_book(store: KeyValueStore, network: str) -> AddressBook:
    """Read the peers of the network with this hash. Raises StoreError."""
    table = Table(store, _PREFIX, text_codec(), struct_codec(KnownPeer))
    sequences = Table(store, _SEQUENCES, text_codec(), struct_codec(int))
    await table.prepare()
    await sequences.prepare()
    mine = {row.peer: row for key, row in table.items() if key.startswith(f"{network}/")}
    return AddressBook(table, network, mine, sequences)
