"""Gives shards to peers: a listener of its own, and a thread for each connection that has shown a ticket."""

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs
import structlog
import trio

from meshnode.errors import (
    MeshnodeError,
    Overloaded,
    PeerMisbehaved,
    PeerRefused,
    PeerUnreachable,
    RequestError,
    Unavailable,
    WireError,
)
from meshnode.network.bulk_socket import BulkSocket, Pace, in_thread, own_socket
from meshnode.network.bulk_work import work_and_tell
from meshnode.network.certificates import Credentials
from meshnode.network.direct import Anteroom, listen, origin_of
from meshnode.network.ports import Shelf
from meshnode.network.right_of_way import Courtesy, RightOfWay
from meshnode.network.tickets import Purpose, TicketBook
from meshnode.network.upload_limits import UploadLimits
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import PeerId, short
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
    ShareWanted,
)
from meshnode.wire.envelopes import Envelope
from meshnode.wire.failures import failure

__all__ = ["BulkReception"]

_log = structlog.get_logger(__name__)
_TOKEN_BYTES = 32
_HANDSHAKE = 5.0  # seconds for a stranger to show a ticket
_IDLE = 60.0  # seconds without a question, after which a connection ends
_THREADS = 16  # connections at once, and
_PER_PEER = 4  # of them to one peer
_STRANGERS = 16  # connections that have shown no ticket; they take nothing from those that have


@attrs.define(eq=False)
class BulkReception:
    """One incarnation; connections end with it."""

    credentials: Credentials
    tickets: TicketBook
    shelf: Shelf
    limits: UploadLimits
    report: Callable[[PeerId | None, MeshnodeError], None]
    way: RightOfWay
    port: int = attrs.field(default=0, init=False)  # once it runs
    _threads: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_THREADS), init=False)
    _handshakes: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_STRANGERS), init=False)
    _anteroom: Anteroom = attrs.field(factory=lambda: Anteroom(_STRANGERS, _HANDSHAKE), init=False)
    _served: dict[PeerId, set[socket.socket]] = attrs.field(factory=dict, init=False)

    async def run(
        self,
        hosts: Sequence[str],
        port: int = 0,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen (port 0: any) and serve until cancelled; then every connection ends. Raises ConfigError."""
        listeners = await listen(hosts, port)
        self.port = listeners[0].socket.getsockname()[1]
        try:
            await trio.serve_listeners(self._receive, listeners, task_status=task_status)  # type: ignore[arg-type]
        finally:
            self.port = 0

    async def _receive(self, stream: trio.SocketStream) -> None:
        origin = origin_of(stream)
        try:
            with own_socket(stream, _HANDSHAKE) as taken, taken.dup() as end, self._secured(taken) as tls:
                token = await self._shown(tls, end, origin)
                with self._admitted(token, end) as peer:
                    tls.settimeout(_IDLE)
                    await in_thread(end, partial(self._answer_all, BulkSocket(tls), peer), self._threads)
        except MeshnodeError as error:
            self.report(None, error)
        except Exception as crash:  # noqa: BLE001  # the stranger's rim
            _log.error("giving shards crashed", exc_info=crash)

    def part_with(self, peer: PeerId) -> None:
        """End the connections of a peer."""
        for end in self._served.get(peer, ()):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _secured(self, taken: socket.socket) -> ssl.SSLSocket:
        try:
            return self.credentials.context.wrap_socket(taken, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            raise PeerUnreachable(f"a stranger broke off: {error}") from error

    async def _shown(self, tls: ssl.SSLSocket, end: socket.socket, origin: str) -> bytes:
        """Return the token that a stranger shows. Raises PeerUnreachable without one."""
        with self._anteroom.admit(origin):
            return await in_thread(end, partial(_receive_token, tls), self._handshakes)
        raise PeerUnreachable("a stranger showed no ticket in time, or too many came at once")

    @contextlib.contextmanager
    def _admitted(self, token: bytes, end: socket.socket) -> Iterator[PeerId]:
        admission = self.tickets.redeem(token)
        if admission.purpose is not Purpose.BULK:
            raise PeerRefused("this ticket is not for shards")
        if sum(map(len, self._served.values())) >= _THREADS:
            raise Overloaded("too many connections for shards")
        peer, ends = admission.peer, self._served.setdefault(admission.peer, set())
        ends.add(end)
        try:
            yield peer
        finally:
            ends.discard(end)
            if not ends:
                del self._served[peer]
                self.limits.forget(peer)

    # In the connection's thread

    def _answer_all(self, connection: BulkSocket, peer: PeerId) -> None:
        courtesy = Courtesy(self.way)
        try:
            while (envelope := connection.receive()) is not None:
                try:
                    self._answer(connection, peer, envelope, courtesy)
                except (RequestError, Unavailable, Overloaded) as error:
                    connection.send(failure(error))
        except (WireError, PeerMisbehaved) as error:
            trio.from_thread.run_sync(self.report, peer, PeerMisbehaved(f"{peer} broke the protocol: {error}"))
        except PeerUnreachable as error:
            _log.debug("shard connection ended", peer=short(peer), why=str(error))

    def _answer(
        self, connection: BulkSocket, peer: PeerId, envelope: Envelope[BulkMessage], courtesy: Courtesy
    ) -> None:
        message = envelope.message
        if len(self._served[peer]) > _PER_PEER:
            raise Overloaded(f"at most {_PER_PEER} connections for one peer")
        match message:
            case ManifestWanted():
                connection.send(ManifestGiven(), trio.from_thread.run_sync(self.shelf.manifest, message.model))
            case ChunksWanted():
                self._give_chunks(connection, message, partial(self.limits.reserve, peer), courtesy)
            case ShareWanted():
                work = partial(self.shelf.make_share, peer, envelope.body)
                connection.send(ShareMade(), trio.from_thread.run(work_and_tell, connection, work))
            case KeepShare():
                keep = partial(self.shelf.keep_share, peer, message.model, _blocks(message), message.block_count)
                trio.from_thread.run(work_and_tell, connection, keep)
                connection.send(ShareKept())
            case _:
                raise PeerMisbehaved(f"{type(message).__name__} at the door where shards are given")

    def _give_chunks(self, connection: BulkSocket, wanted: ChunksWanted, pace: Pace, courtesy: Courtesy) -> None:
        path: Path = trio.from_thread.run_sync(self.shelf.path, wanted.shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"shard {short(wanted.shard)} cannot be read: {error.strerror}") from error
        try:
            for number in range(wanted.first, wanted.first + wanted.count):
                connection.send(Chunk(number), _read(descriptor, number, wanted), pace, courtesy)
        finally:
            os.close(descriptor)


def _receive_token(tls: ssl.SSLSocket) -> bytes:
    try:
        tls.do_handshake()
    except OSError as error:
        raise PeerUnreachable(f"a stranger broke off: {error}") from error
    return BulkSocket(tls).receive_raw(_TOKEN_BYTES)


def _blocks(message: KeepShare) -> BlockRange:
    try:
        return BlockRange(message.start, message.end)
    except ValueError as error:
        raise PeerMisbehaved(str(error)) from error


def _read(descriptor: int, number: int, wanted: ChunksWanted) -> bytes:
    try:
        data = os.pread(descriptor, CHUNK_BYTES, number * CHUNK_BYTES)
    except OSError as error:
        raise Unavailable(f"shard {short(wanted.shard)} cannot be read: {error.strerror}") from error
    if not data:
        raise RequestError(f"shard {short(wanted.shard)} has no chunk {number}")
    return data
