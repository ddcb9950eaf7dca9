"""Takes shards from peers: one connection, worked on by a thread while something is fetched."""

import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from meshnode.crypto.tls import dialler_context, is_presented
from meshnode.errors import PeerMisbehaved, PeerUnreachable, WireError
from meshnode.network.bulk_socket import BulkSocket, in_thread, own_socket
from meshnode.network.direct import is_address
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, ShardId
from meshnode.types.manifest import CHUNK_BYTES
from meshnode.wire.bulk_messages import (
    BulkMessage,
    Chunk,
    ChunksWanted,
    KeepShare,
    ManifestGiven,
    ManifestWanted,
    ShareKept,
    ShareMade,
    ShareProgress,
    ShareWanted,
)
from meshnode.wire.control_messages import Ticket
from meshnode.wire.envelopes import Envelope
from meshnode.wire.failures import Failed, error_from

__all__ = ["BulkLine", "TakeChunk", "TellProgress", "open_line"]

TakeChunk = Callable[[int, bytes], None]
"""Told the number and the bytes of each chunk, in the line's thread. What it raises ends the fetching."""

TellProgress = Callable[[int, int], None]
"""Told how many bytes of how many have come."""

_CONNECT = 2.0  # seconds for one address
_PATIENCE = 15.0  # seconds without a byte
_CHUNK = 300.0  # seconds for a chunk: at 3.5 kB/s no model comes within a month


@attrs.define(eq=False)
class BulkLine:
    """A connection to one peer; one thing is fetched at a time. After an error it is of no use."""

    peer: PeerId
    _connection: BulkSocket
    _end: socket.socket
    _threads: trio.CapacityLimiter

    async def manifest(self, model: ModelId) -> bytes:
        """Return a manifest as the peer has it, not checked. Raises PeerUnreachable, PeerMisbehaved, or what it refuses with."""
        return await in_thread(self._end, partial(self._manifest, model), self._threads)

    async def fetch(self, shard: ShardId, first: int, count: int, take: TakeChunk) -> None:
        """Fetch `count` chunks of a shard from number `first` on; `take` gets each, in order, unchecked.

        Raises PeerUnreachable, PeerMisbehaved, what the peer refuses with, and what `take` raises. Cancellation ends it
        at once; the line is of no use then.
        """
        await in_thread(self._end, partial(self._fetch, shard, first, count, take), self._threads)

    async def make_share(self, share: bytes, report: TellProgress) -> bytes:
        """Have the peer make a share, and return what it says that it made; `report` hears of its progress, in our thread.

        Raises PeerUnreachable, PeerMisbehaved, what the peer refuses with. Cancellation ends its work too.
        """

        def tell(done: int, total: int) -> None:
            trio.from_thread.run_sync(report, done, total)

        return await in_thread(self._end, partial(self._order, ShareWanted(), share, ShareMade, tell), self._threads)

    async def keep_share(self, model: ModelId, blocks: BlockRange, block_count: int) -> None:
        """Have the peer keep what it made, as blocks of a model. Raises as `make_share`."""
        order = KeepShare(model, blocks.start, blocks.end, block_count)
        await in_thread(
            self._end, partial(self._order, order, b"", ShareKept, lambda _done, _total: None), self._threads
        )

    # In the thread

    def _order(self, order: BulkMessage, body: bytes, kind: type[BulkMessage], report: TellProgress) -> bytes:
        self._connection.send(order, body)
        while isinstance((envelope := self._next(kind, ShareProgress)).message, ShareProgress):
            report(envelope.message.done, envelope.message.total)
        return envelope.body

    def _manifest(self, model: ModelId) -> bytes:
        self._connection.send(ManifestWanted(model))
        return self._next(ManifestGiven).body

    def _fetch(self, shard: ShardId, first: int, count: int, take: TakeChunk) -> None:
        self._connection.send(ChunksWanted(shard, first, count))
        for number in range(first, first + count):
            chunk = self._next(Chunk, within=_CHUNK)
            assert isinstance(chunk.message, Chunk)
            if chunk.message.number != number or not 0 < len(chunk.body) <= CHUNK_BYTES:
                raise PeerMisbehaved(f"{self.peer} sent chunk {chunk.message.number} for {number}")
            take(number, chunk.body)

    def _next(self, *kinds: type[BulkMessage], within: float = math.inf) -> Envelope[BulkMessage]:
        try:
            envelope = self._connection.receive(within)
        except WireError as error:
            raise PeerMisbehaved(f"{self.peer} broke the protocol: {error}") from error
        if envelope is None:
            raise PeerUnreachable(f"{self.peer} hung up")
        if isinstance(envelope.message, Failed):
            raise error_from(envelope.message, PeerUnreachable)
        if not isinstance(envelope.message, kinds):
            raise PeerMisbehaved(f"{self.peer} answered with {type(envelope.message).__name__}")
        return envelope


@asynccontextmanager
async def open_line(peer: PeerId, ticket: Ticket, threads: trio.CapacityLimiter) -> AsyncIterator[BulkLine]:
    """Connect to a peer with the ticket it gave and yield the line; leaving closes it. Raises PeerUnreachable."""
    with await _connect(peer, ticket) as taken, taken.dup() as end:  # `taken` belongs to TLS from the handshake on
        connection = await in_thread(end, partial(_shake_hands, taken, ticket), threads)
        with connection.socket:
            yield BulkLine(peer, connection, end, threads)


async def _connect(peer: PeerId, ticket: Ticket) -> socket.socket:
    reasons: list[str] = []
    for host in filter(is_address, ticket.hosts):  # a name would make us ask our resolver what a peer wants
        try:
            with trio.fail_after(_CONNECT):
                return own_socket(await trio.open_tcp_stream(host, ticket.port), _PATIENCE)
        except OSError as error:
            reasons.append(f"{host}: {error}")
        except trio.TooSlowError:
            reasons.append(f"{host}: no answer")
    raise PeerUnreachable(f"no direct way to {peer} for shards ({'; '.join(reasons)})")


def _shake_hands(taken: socket.socket, ticket: Ticket) -> BulkSocket:
    try:
        tls: ssl.SSLSocket = dialler_context().wrap_socket(taken)
    except OSError as error:
        raise PeerUnreachable(f"no TLS: {error}") from error
    certificate = tls.getpeercert(binary_form=True) or b""
    if not is_presented(certificate, ticket.certificate):
        tls.close()
        raise PeerUnreachable("another machine answers there: its certificate is not the one the peer has named")
    connection = BulkSocket(tls)
    connection.send_raw(ticket.token)
    return connection
