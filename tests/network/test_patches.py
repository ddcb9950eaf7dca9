"""What libp2p gets wrong without the patches, on a connection of ours over a wire of ours, in virtual time."""

import importlib.metadata
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from meshnode.crypto.identity import Identity
from meshnode.network import patches
from meshnode.network.libp2p_streams import Carrier

PEER = ID.from_base58(Identity(bytes(32)).peer)


class Line:
    """A stream that takes its time over a write, and may hang in the middle of one."""

    def __init__(self, stream):
        self.stream = stream
        self.hangs = False
        self.written = 0

    async def send_all(self, data):
        for start in range(0, len(data), 1000):
            if self.hangs:
                await trio.sleep_forever()
            await trio.sleep(0.001)
            await self.stream.send_all(data[start : start + 1000])
            self.written += len(data[start : start + 1000])

    async def receive_some(self, max_bytes=None):
        return await self.stream.receive_some(max_bytes)

    async def aclose(self):
        await self.stream.aclose()


class Wire(Carrier):
    """One end of a connection, secure as far as yamux knows."""

    def __init__(self, stream, *, is_initiator):
        self.line = Line(stream)
        self.is_initiator = is_initiator
        super().__init__(self.line, None)


@asynccontextmanager
async def connected():
    patches.apply()
    left, right = trio.testing.memory_stream_pair()
    ends = [patches.SteadyYamux(Wire(end, is_initiator=end is left), PEER) for end in (left, right)]
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.start)
            await end.event_started.wait()
        yield ends
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def with_stream():
    async with connected() as (left, right):
        here = await left.open_stream()
        there = await right.accept_stream()
        yield here, there


async def read_to_the_end(stream):
    data = bytearray()
    while True:
        try:
            data += await stream.read(10_000)
        except MuxedStreamEOF:
            return bytes(data)


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.9.0")
    with pytest.raises(RuntimeError, match=r"libp2p 0\.9\.0 is installed.*pip install libp2p==0\.8\.1"):
        patches.apply()


def test_the_version_is_the_one_that_is_installed():
    assert importlib.metadata.version("libp2p") == patches.LIBP2P_VERSION


async def test_a_cancelled_write_leaves_no_half_frame(autojump_clock):
    async with with_stream() as (here, there):
        line, received = here.conn.secured_conn.line, bytearray()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                received.extend(await read_to_the_end(there))

            for _ in range(50):
                before = line.written
                with trio.move_on_after(0.0035) as scope:
                    await here.write(bytes(40_000))
                assert scope.cancel_called
                assert line.written - before >= 40_012
            await here.write(b"end")
            await here.close()
        assert received == bytes(50 * 40_000) + b"end"


async def test_a_write_that_waits_for_its_turn_is_cancelled_at_once_and_keeps_its_window(autojump_clock):
    async with with_stream() as (here, _):
        window = here.send_window
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.conn._write_frame, bytes(12 + 50_000))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.001) as scope:
                await here.write(b"x" * 100)
            assert scope.cancelled_caught
            assert here.send_window == window


async def test_a_cancelled_read_loses_nothing(autojump_clock):
    async with with_stream() as (here, there):
        data = bytes(range(256)) * 400
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.write, data)
            while len(received) < len(data):
                with trio.move_on_after(0.0005):
                    received += await there.read(777)
        assert received == data


async def test_a_peer_that_takes_nothing_loses_the_connection(autojump_clock):
    async with with_stream() as (here, _):
        here.conn.secured_conn.line.hangs = True
        started = trio.current_time()
        with pytest.raises(ConnectionClosedError, match="took nothing for 30 s"):
            await here.write(b"anybody?")
        assert trio.current_time() - started == 30
        assert here.conn.is_closed
        with pytest.raises(BaseLibp2pError):
            await here.write(b"again")


async def test_closing_does_not_wait_for_a_peer_that_hangs(autojump_clock):
    async with with_stream() as (here, _):
        here.conn.secured_conn.line.hangs = True
        started = trio.current_time()
        await here.conn.close()
        assert trio.current_time() == started
        assert here.conn.is_closed


async def test_a_slow_reader_slows_the_writer_down_and_does_not_end_the_stream(autojump_clock):
    async with with_stream() as (here, there):
        data = bytes(range(256)) * 4096
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                await here.write(data)
                await here.close()

            await trio.sleep(600)
            assert len(there.conn.stream_buffers[there.stream_id]) <= 256 << 10
            assert await read_to_the_end(there) == data


async def test_a_peer_that_ignores_its_window_gets_a_reset_and_no_memory(autojump_clock):
    async with with_stream() as (here, there):
        other = await here.conn.open_stream()
        other_there = await there.conn.accept_stream()
        here.send_window = 1 << 30
        with pytest.raises(BaseLibp2pError):
            await here.write(bytes(4 << 20))
        assert not there.conn.stream_buffers.get(there.stream_id)
        with pytest.raises((MuxedStreamReset, MuxedStreamEOF)):
            await there.read()
        await other.write(b"fine")
        assert await other_there.read() == b"fine"


async def test_a_frame_larger_than_any_window_ends_the_connection(autojump_clock):
    async with with_stream() as (here, there):
        await here.conn._write_frame(here._header(0, 0, (1 << 20) + 1))
        await there.conn.event_closed.wait()


async def test_a_window_grows_with_its_reader_and_not_beyond_its_limit(autojump_clock):
    async with with_stream() as (here, there):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.write, bytes(8 << 20))
            received = 0
            while received < 8 << 20:
                received += len(await there.read(65536))
        assert 256 << 10 < there.target_recv_window <= 1 << 20


async def test_a_window_is_opened_when_half_of_it_is_used_and_not_for_every_little_that_is_read(autojump_clock):
    async with with_stream() as (here, there):
        await trio.sleep(1)
        began, half = there.conn.secured_conn.line.written, there.target_recv_window // 2
        for _ in range(100):
            await here.write(b"heartbeat")
            assert await there.read() == b"heartbeat"
        assert there.conn.secured_conn.line.written == began
        await here.write(bytes(half))
        left = half
        while left:
            left -= len(await there.read())
        await trio.sleep(1)
        assert there.conn.secured_conn.line.written - began <= 3 * 12  # it grows meanwhile
        assert here.send_window == there.recv_window > half


async def test_a_socket_is_not_asked_for_every_two_bytes():
    here, there = trio.testing.memory_stream_pair()
    carrier = Carrier(there, None)
    await here.send_all(b"\0\4data\0\1!")
    assert [await carrier.read(count) for count in (2, 4, 1)] == [b"\0\4", b"data", b"\0"]
    there.receive_stream.close()  # the rest is here
    assert await carrier.read(1) + await carrier.read() == b"\1!"
    with pytest.raises(ConnectionClosedError):
        await carrier.read(1)


async def test_a_small_message_goes_out_whole_at_once_if_there_is_room_and_later_if_not():
    message, received = bytes(range(256)) * 15, bytearray()
    here, there = map(trio.SocketStream, trio.socket.socketpair())
    async with here, there:
        carrier = Carrier(here, None)
        with trio.CancelScope() as scope:
            scope.cancel()
            await carrier.write(message)
        assert not scope.cancelled_caught
        assert await there.receive_some() == message  # without a round of the loop in which the cancellation had struck

        written = 0

        async def write():
            nonlocal written
            with scope:
                while True:
                    await carrier.write(message)
                    written += len(message)
                    await trio.lowlevel.checkpoint()
            await here.aclose()

        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            async for data in there:
                received += data
        assert received == message * (written // len(message))
    with pytest.raises(ConnectionClosedError):
        await carrier.write(message)


async def test_an_idle_connection_says_nothing_once_it_knows_how_far_away_the_peer_is(autojump_clock):
    async with connected() as ends:
        await trio.sleep(5)
        began = [end.secured_conn.line.written for end in ends]
        await trio.sleep(600)
        assert [end.secured_conn.line.written for end in ends] == began
        assert all(end.rtt() > 0 for end in ends)


async def test_what_was_finished_is_read_as_finished_though_a_reset_follows(autojump_clock):
    async with with_stream() as (here, there):
        await here.write(b"the end")
        await here.close()
        await here.reset()
        await trio.sleep(1)
        assert await read_to_the_end(there) == b"the end"
    async with with_stream() as (here, there):
        await here.reset()
        await trio.sleep(1)
        with pytest.raises(MuxedStreamReset):
            await there.read()


async def test_a_reset_wakes_the_reader_on_its_own_side(autojump_clock):
    async with with_stream() as (here, _):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                with pytest.raises(MuxedStreamReset):
                    await here.read()

            await trio.sleep(1)
            await here.reset()
        assert here.stream_id not in here.conn.stream_events


async def test_streams_leave_nothing_behind(autojump_clock):
    async with connected() as (left, right):
        for _ in range(600):
            here = await left.open_stream()
            there = await right.accept_stream()
            await here.write(b"x")
            await here.close()
            assert await there.read() == b"x"
            await there.close()
            await here.reset()
            await there.reset()
        await trio.sleep(1)
        for end in (left, right):
            assert not end.streams
            assert not end.stream_buffers
            assert not end.stream_events
        assert left.stream_backlog_semaphore.value == 256
