"""Shards from peer to peer, over real sockets: what is asked for comes, and nothing else does."""

import contextlib
import socket
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from meshnode.crypto.tls import dialler_context
from meshnode.errors import MeshnodeError, Overloaded, PeerMisbehaved, PeerUnreachable, RequestError, Unavailable
from meshnode.network.bulk_lines import open_line
from meshnode.network.bulk_reception import BulkReception
from meshnode.network.certificates import make_credentials
from meshnode.network.right_of_way import RightOfWay
from meshnode.network.tickets import Purpose, TicketBook
from meshnode.network.upload_limits import UploadLimits
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import CHUNK_BYTES
from meshnode.wire.bulk_messages import Chunk, ChunksWanted, ShareWanted
from meshnode.wire.control_messages import Ticket
from meshnode.wire.protocols import BULK_MESSAGES

pytestmark = pytest.mark.timeout(60)

SHARD, OTHER, MODEL = "a" * 64, "b" * 64, "c" * 64
SIZE = 5 * CHUNK_BYTES + 77


@attrs.define
class Shelf:
    file: object
    asked: list = attrs.field(factory=list)
    work: object = trio.lowlevel.checkpoint

    def path(self, shard):
        if shard != SHARD:
            raise Unavailable(f"shard {shard[:12]} is not here")
        return self.file

    def manifest(self, model):
        if model != MODEL:
            raise Unavailable("no such model")
        return b"a manifest"

    async def make_share(self, peer, share, report):
        self.asked.append((peer, share))
        report(5, 10)
        await self.work()
        return share[::-1]

    async def keep_share(self, peer, model, blocks, block_count, _report):
        await trio.lowlevel.checkpoint()
        if model != MODEL:
            raise Unavailable("no such model")
        self.asked.append((peer, str(blocks), block_count))


@attrs.define(eq=False)
class WatchedWay(RightOfWay):
    claims: list = attrs.field(factory=list, init=False)

    def claim(self, seconds):
        self.claims.append(seconds)
        return super().claim(seconds)


@attrs.define
class Door:
    giving: BulkReception
    data: bytes
    reports: list
    threads: trio.CapacityLimiter

    def ticket(self, peer="bob", purpose=Purpose.BULK, **changes):
        fields = {
            "hosts": ("127.0.0.1",),
            "port": self.giving.port,
            "certificate": self.giving.credentials.fingerprint,
            "token": self.giving.tickets.issue(peer, purpose),
            "lifetime": 30.0,
        }
        return Ticket(**fields | changes)

    def open(self, **changes):
        return open_line("giver", self.ticket(**changes), self.threads)

    async def fetch(self, line, first, count):
        chunks = {}
        await line.fetch(SHARD, first, count, chunks.__setitem__)
        return chunks

    def chunk(self, number):
        return self.data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]

    async def is_free(self):
        with trio.fail_after(5):
            while self.giving._served or len(self.giving._anteroom):  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.01)


@pytest.fixture
def opened(tmp_path):
    data = bytes(range(256)) * (SIZE // 256 + 1)
    file = tmp_path / "shard"
    file.write_bytes(data[:SIZE])

    @asynccontextmanager
    async def open_door(**limits):
        reports, shelf = [], Shelf(file)
        async with trio.open_nursery() as nursery:
            giving = BulkReception(
                make_credentials(),
                TicketBook(),
                shelf,
                UploadLimits(**limits),
                lambda *each: reports.append(each),
                WatchedWay(),
            )
            await nursery.start(giving.run, ("127.0.0.1",))
            yield Door(giving, data[:SIZE], reports, trio.CapacityLimiter(8))
            nursery.cancel_scope.cancel()

    return open_door


async def test_chunks_and_manifests_come_as_they_are(opened):
    async with opened() as door:
        async with door.open() as line:
            assert await line.manifest(MODEL) == b"a manifest"
            assert await door.fetch(line, 1, 3) == {number: door.chunk(number) for number in (1, 2, 3)}
            assert await door.fetch(line, 5, 1) == {5: door.data[-77:]}
        await door.is_free()
        assert door.reports == []


async def test_while_activations_pass_chunks_come_in_turn_and_as_they_are(opened):
    async with opened() as door, door.open() as line, door.open(peer="eve") as other:
        way, got = door.giving.way, {}
        assert await door.fetch(line, 0, 1) == {0: door.chunk(0)}
        assert way.claims == []
        way.activations_pass()
        async with trio.open_nursery() as nursery:
            for each, number in ((line, 1), (other, 2)):
                nursery.start_soon(each.fetch, SHARD, number, 1, got.__setitem__)
        assert got == {number: door.chunk(number) for number in (1, 2)}
        assert len(way.claims) > 8


@pytest.mark.parametrize(
    ("ask", "refusal"),
    [
        (lambda line: line.manifest(OTHER), Unavailable),
        (lambda line: line.fetch(OTHER, 0, 1, lambda *_: None), Unavailable),
        (lambda line: line.fetch(SHARD, 4, 3, lambda *_: None), RequestError),
    ],
    ids=["no such model", "no such shard", "beyond its end"],
)
async def test_what_is_not_there_is_refused_and_the_line_goes_on(opened, ask, refusal):
    async with opened() as door, door.open() as line:
        with pytest.raises(refusal):
            await ask(line)
        assert await line.manifest(MODEL) == b"a manifest"


async def test_a_share_is_made_and_kept_and_its_progress_heard_of(opened, monkeypatch):
    monkeypatch.setattr("meshnode.network.bulk_work._EVERY", 0.02)
    async with opened() as door:
        heard, shelf = [], door.giving.shelf

        async def until_heard():
            while not heard:  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.01)

        shelf.work = until_heard
        async with door.open() as line:
            with trio.fail_after(10):
                assert await line.make_share(b"share", lambda *each: heard.append(each)) == b"erahs"
            await line.keep_share(MODEL, BlockRange(2, 5), 9)
            with pytest.raises(Unavailable, match="no such model"):
                await line.keep_share(OTHER, BlockRange(2, 5), 9)
            assert await line.manifest(MODEL) == b"a manifest"
        assert set(heard) == {(5, 10)}
        assert shelf.asked == [("bob", b"share"), ("bob", "2:5", 9)]


async def test_what_cannot_be_made_is_refused_and_the_line_goes_on(opened):
    async def fail():
        await trio.lowlevel.checkpoint()
        raise Unavailable("the disk is full")

    async with opened() as door:
        door.giving.shelf.work = fail
        async with door.open() as line:
            with pytest.raises(Unavailable, match="the disk is full"):
                await line.make_share(b"share", lambda *_: None)
            assert await line.manifest(MODEL) == b"a manifest"


@pytest.mark.parametrize("leaving", ["cancelled", "silent"])
async def test_who_leaves_ends_the_work_that_they_have_asked_for(opened, monkeypatch, leaving):
    monkeypatch.setattr("meshnode.network.bulk_work._EVERY", 0.05)
    begun, ended = trio.Event(), trio.Event()

    async def work():
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with opened() as door:
        door.giving.shelf.work = work
        async with door.open() as line:
            if leaving == "cancelled":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(line.make_share, b"share", lambda *_: None)
                    await begun.wait()
                    nursery.cancel_scope.cancel()
            else:
                line._connection.send(ShareWanted(), b"share")
                await begun.wait()
        with trio.fail_after(10):
            await ended.wait()
        await door.is_free()
        assert door.reports == []


async def test_cancelling_ends_a_transfer_at_both_ends_at_once(opened):
    async with opened(total=1024) as door:  # so that it would take hours
        async with door.open() as line:
            with trio.move_on_after(0.3):
                await line.fetch(SHARD, 0, 5, lambda *_: None)
        await door.is_free()
        assert door.reports == []


async def test_what_the_taker_raises_ends_the_transfer(opened):
    def refuse(_number, _data):
        raise PeerMisbehaved("wrong bytes")

    async with opened() as door:
        async with door.open() as line:
            with pytest.raises(PeerMisbehaved, match="wrong bytes"):
                await line.fetch(SHARD, 0, 5, refuse)
        await door.is_free()


@pytest.mark.parametrize(
    "changes", [{"purpose": Purpose.ACTIVATIONS}, {"token": bytes(32)}, {"certificate": bytes(32)}], ids=str
)
async def test_who_has_no_ticket_for_shards_gets_none(opened, changes):
    async with opened() as door:
        with pytest.raises(PeerUnreachable):
            async with door.open(**changes) as line:
                await line.manifest(MODEL)
        await door.is_free()


async def test_a_ticket_is_good_once(opened):
    async with opened() as door:
        ticket = door.ticket()
        async with open_line("giver", ticket, door.threads) as line:
            await line.manifest(MODEL)
        with pytest.raises(PeerUnreachable):
            async with open_line("giver", ticket, door.threads) as line:
                await line.manifest(MODEL)


async def test_a_crowd_of_strangers_keeps_nobody_out_and_leaves_no_thread(opened):
    async with opened() as door:
        crowd = [
            await trio.open_tcp_stream("127.0.0.1", door.giving.port, local_address=f"127.0.0.{2 + number % 2}")
            for number in range(40)
        ]
        await crowd[0].send_all(b"GET / HTTP/1.1\r\n\r\n" * 10)
        async with door.open() as line:
            assert await line.manifest(MODEL) == b"a manifest"
        for stranger in crowd:
            await trio.aclose_forcefully(stranger)
        with trio.fail_after(5):
            while len(door.reports) < len(crowd):  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.01)
        await door.is_free()
        assert {(peer, type(error)) for peer, error in door.reports} == {(None, PeerUnreachable)}


async def test_a_token_that_trickles_in_has_one_deadline(opened, monkeypatch):
    monkeypatch.setattr("meshnode.network.bulk_reception._HANDSHAKE", 0.4)
    async with opened() as door:
        plain = socket.create_connection(("127.0.0.1", door.giving.port))
        with await trio.to_thread.run_sync(dialler_context().wrap_socket, plain) as tls, trio.fail_after(5):
            while not door.reports:
                with contextlib.suppress(OSError):
                    tls.send(b"x")
                await trio.sleep(0.1)
        assert [type(error) for _, error in door.reports] == [PeerUnreachable]


async def test_who_is_banned_loses_its_connections(opened):
    async with opened() as door, door.open() as line, door.open(peer="eve") as other:
        await line.manifest(MODEL)
        await other.manifest(MODEL)
        door.giving.part_with("eve")
        with pytest.raises(PeerUnreachable):
            await other.manifest(MODEL)
        assert await line.manifest(MODEL) == b"a manifest"


async def test_one_peer_has_only_so_many_connections(opened):
    async with opened() as door, trio.open_nursery() as nursery:
        lines = []

        async def hold():
            async with door.open() as line:
                lines.append(line)
                await trio.sleep_forever()

        for _ in range(5):
            nursery.start_soon(hold)
        while len(lines) < 5 or len(door.giving._served.get("bob", ())) < 5:  # noqa: ASYNC110  # nobody is told
            await trio.sleep(0.01)
        with pytest.raises(Overloaded, match="at most 4"):
            await lines[0].manifest(MODEL)
        nursery.cancel_scope.cancel()


async def test_who_breaks_the_protocol_is_named(opened):
    async with opened() as door:
        async with door.open() as line:
            line._connection.send_raw(b"\xff" * 64)
            with pytest.raises(PeerUnreachable):
                await line.manifest(MODEL)
        await door.is_free()
        assert [(peer, type(error)) for peer, error in door.reports] == [("bob", PeerMisbehaved)]


@pytest.mark.parametrize(
    "answer",
    [
        BULK_MESSAGES.to_frame(Chunk(1), b"the wrong one"),
        BULK_MESSAGES.to_frame(Chunk(0), b""),
        BULK_MESSAGES.to_frame(ChunksWanted(SHARD, 0, 1)),
        b"\xff" * 100,
        b"",
    ],
    ids=["another number", "nothing in it", "a question", "garbage", "hangs up"],
)
async def test_a_giver_that_answers_nonsense_is_told_apart_from_one_that_is_gone(answer):
    """The giver is a socket that says `answer` to whatever it is asked."""
    credentials = make_credentials()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def give():
            taken, _ = server.accept()
            with credentials.context.wrap_socket(taken, server_side=True) as tls:
                tls.recv(4096)
                tls.recv(4096)
                tls.sendall(answer)

        ticket = Ticket(("127.0.0.1",), server.getsockname()[1], credentials.fingerprint, bytes(32), 30.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, give)
            async with open_line("giver", ticket, trio.CapacityLimiter(2)) as line:
                with pytest.raises(MeshnodeError) as caught:
                    await line.fetch(SHARD, 0, 1, lambda *_: None)
        assert type(caught.value) is (PeerUnreachable if answer == b"" else PeerMisbehaved)


async def test_a_chunk_that_trickles_in_is_not_waited_for(opened, monkeypatch):
    """Its giver sends some of it all the time, and would for minutes."""
    monkeypatch.setattr("meshnode.network.bulk_lines._CHUNK", 0.4)
    async with opened(total=100 << 10) as door, door.open() as line:
        with pytest.raises(PeerUnreachable, match="too slow"):
            await door.fetch(line, 0, 1)


async def test_names_are_no_addresses(opened):
    async with opened() as door:
        with pytest.raises(PeerUnreachable, match="no direct way"):
            async with door.open(hosts=("localhost",)):
                pass


def test_uploads_are_paced_in_total_and_to_each_peer(monkeypatch):
    monkeypatch.setattr("meshnode.network.upload_limits.time.monotonic", lambda: 1000.0)
    limits = UploadLimits(total=100.0, per_peer=50.0)
    assert [limits.reserve(peer, 50) for peer in "aabb"] == [0.75, 1.75, 1.25, 1.75]
    assert UploadLimits().reserve("a", 1 << 40) == 0


async def test_an_upload_that_is_paced_is_slow_and_not_broken(opened, monkeypatch):
    """Longer than its taker waits for a byte, and some of it all the time."""
    monkeypatch.setattr("meshnode.network.bulk_lines._PATIENCE", 0.4)
    async with opened(total=1 << 20) as door, door.open() as line:
        assert await door.fetch(line, 4, 2) == {4: door.chunk(4), 5: door.data[-77:]}
