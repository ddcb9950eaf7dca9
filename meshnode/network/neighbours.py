"""How records are handed from neighbour to neighbour, so that all have the same book and nobody is told much that it knows.

What a node says of itself it sends to all of its neighbours at once; what it has heard it hands on to one of them. Most others
have it by then: in a mesh where all are linked, handing it on to everybody sent 2300 messages for one word of one of fifty nodes.
Heartbeats carry a digest of the book, and show who lacks something; that one is sent what it is not known to have. The first of
a link does so at once: a newcomer gets the whole book from the first, and from the others nothing.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator

import attrs
import trio

from meshnode.network.gossip import MAX_PEERS, GossipBook
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Records, SignedRecord

__all__ = ["Neighbour"]

_MAX_BATCH = 56 << 10
_PACE = 0.2  # seconds between batches to one neighbour


@attrs.define(eq=False)
class Neighbour:
    """What one neighbour has of the book."""

    peer: PeerId
    book: GossipBook
    _has: dict[PeerId, int] = attrs.field(factory=dict, init=False)  # sequence of the newest record it has, by signer
    _settled: int = attrs.field(default=-1, init=False)  # version of the book of which it has everything
    _is_owed_all: bool = attrs.field(default=False, init=False)  # of what is newer
    _owed: set[PeerId] = attrs.field(factory=set, init=False)  # signers of records that it gets at once
    _woken: trio.Event = attrs.field(factory=trio.Event, init=False)

    def heard(self, record: SignedRecord) -> None:
        """Note that the neighbour sent a record."""
        known = self.book.offer(record.signer)
        if known is not None and self.book.has(record):
            self._note(record.signer, known.sequence)

    def lacks(self, signer: PeerId) -> bool:
        """Whether the neighbour is not known to have our newest record of a node."""
        known = self.book.offer(signer)
        return known is not None and signer != self.peer and self._has.get(signer, -1) < known.sequence

    def tell(self, signer: PeerId) -> None:
        """Have the newest record of a node sent."""
        self._owed.add(signer)
        if len(self._owed) > MAX_PEERS:  # it reads slowly, and most of them have gone from the book
            self._owed.clear()
            self._is_owed_all = True
        self._woken.set()

    # What a heartbeat carries

    def digest(self) -> int:
        """Return what shows the neighbour whether it has the same book."""
        return self.book.digest

    def compare(self, digest: int | None) -> None:
        """Take the neighbour's; an older version has none. Books that stay different do not have anything sent twice."""
        if digest != self.book.digest and any(self._lacking(self.book.records(self._settled))):
            self._is_owed_all = True
            self._woken.set()
        else:
            self._settled = self.book.version

    async def feed(self, send: Callable[[Records], Awaitable[None]]) -> None:
        """Send the neighbour what it lacks, until cancelled; `send` may wait, and raises PeerUnreachable at the end."""
        again = -math.inf
        while True:
            while not (self._is_owed_all or self._owed):
                self._woken = trio.Event()
                await self._woken.wait()
            if trio.current_time() < again:
                await trio.sleep_until(again)
            again = trio.current_time() + _PACE
            for batch in self._batches():
                await send(Records(batch))

    def _batches(self) -> Iterator[tuple[SignedRecord, ...]]:
        """Cut what is owed into messages."""
        batch: list[SignedRecord] = []
        size = 0
        for record, sequence in self._take_owed():
            nbytes = len(record.payload) + 256
            if batch and size + nbytes > _MAX_BATCH:
                yield tuple(batch)
                batch, size = [], 0
            batch.append(record)
            size += nbytes
            self._note(record.signer, sequence)
        if batch:
            yield tuple(batch)

    def _note(self, signer: PeerId, sequence: int) -> None:
        """Remember what the neighbour has; of signers that the book has dropped, no more than it can hold."""
        self._has[signer] = sequence
        if len(self._has) > 2 * MAX_PEERS:
            self._has = {each: newest for each, newest in self._has.items() if self.book.offer(each) is not None}

    def _take_owed(self) -> list[tuple[SignedRecord, int]]:
        records = self.book.records(self._settled)
        if self._is_owed_all:
            self._settled, self._is_owed_all = self.book.version, False
        else:
            records = tuple(each for each in records if each[0].signer in self._owed)
        self._owed.clear()
        return list(self._lacking(records))

    def _lacking(self, records: Iterable[tuple[SignedRecord, int]]) -> Iterator[tuple[SignedRecord, int]]:
        for record, sequence in records:
            if record.signer != self.peer and self._has.get(record.signer, -1) < sequence:
                yield record, sequence
