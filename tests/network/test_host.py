"""Real hosts on loopback."""

import os
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from meshnode.crypto.identity import Identity
from meshnode.errors import ConfigError, PeerMisbehaved, PeerUnreachable
from meshnode.network import libp2p_connections
from meshnode.network.host import HostSettings, open_host

pytestmark = pytest.mark.processes

ECHO, SINK, BROKEN, GREETING = "/test/echo/1", "/test/sink/1", "/test/broken/1", "/test/greeting/1"


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


async def sink(stream):
    await trio.sleep_forever()


async def broken(stream):
    raise ZeroDivisionError("on purpose")


async def greeting(stream):
    await stream.send_all(b"good " * 40_000 + b"bye")


HANDLERS = {ECHO: echo, SINK: sink, BROKEN: broken, GREETING: greeting}


def host(handlers=HANDLERS, identity=None, **settings):
    return open_host(identity or Identity.generate(), HostSettings(host="127.0.0.1", **settings), handlers)


@asynccontextmanager
async def two_hosts(**settings):
    with trio.fail_after(60):
        async with host(**settings) as here, host(**settings) as there:
            await here.connect(there.listen_addresses())
            there.vouch(here.peer)  # as a valid Hello would: these tests speak protocols of their own
            yield here, there


async def receive_exactly(stream, size):
    data = bytearray()
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, "the stream ended early"
        data += more
    return bytes(data)


async def read_to_the_end(stream):
    data = bytearray()
    while more := await stream.receive_some():
        data += more
    return bytes(data)


async def alone(host):
    while host.connections():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def send_for_ever(stream):
    while True:
        await stream.send_all(bytes(100_000))


async def assert_alive(here, there):
    stream = await here.open_stream(there.peer, ECHO)
    await stream.send_all(b"still there?")
    assert await receive_exactly(stream, 12) == b"still there?"
    await stream.aclose()


async def test_two_hosts_talk():
    async with two_hosts() as (here, there):
        stream = await here.open_stream(there.peer, ECHO)
        assert stream.peer == there.peer
        assert not stream.is_relayed
        payload = random.Random(1).randbytes(3 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, payload)
            assert await receive_exactly(stream, len(payload)) == payload
        await stream.aclose()
        assert here.connections() == {there.peer}
        assert there.connections() == {here.peer}


async def test_either_side_may_open_streams():
    async with two_hosts() as (here, there):
        await assert_alive(there, here)


async def test_a_handler_knows_its_peer_by_their_key():
    seen = []

    async def note(stream):
        seen.append(stream.peer)
        await stream.send_all(b"noted")

    async with host({ECHO: note}) as there, host() as here:
        await here.connect(there.listen_addresses())
        assert await read_to_the_end(await here.open_stream(there.peer, ECHO)) == b"noted"
        assert seen == [here.peer]


async def test_what_was_sent_before_the_end_arrives():
    async with two_hosts() as (here, there):
        stream = await here.open_stream(there.peer, GREETING)
        assert await read_to_the_end(stream) == b"good " * 40_000 + b"bye"
        await stream.aclose()


async def test_closing_wakes_our_own_reader():
    async with two_hosts() as (here, there):
        stream = await here.open_stream(there.peer, SINK)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                with pytest.raises(trio.ClosedResourceError):
                    await stream.receive_some()

            await trio.testing.wait_all_tasks_blocked(0.05)
            await stream.aclose()
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_connecting_again_costs_nothing_and_at_once_makes_one_connection():
    async with host() as here, host() as there:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(here.connect, there.listen_addresses())
        assert len(here._connections.swarm.get_connections()) == 1
        assert await here.connect(there.listen_addresses()) == there.peer
        assert len(here._connections.swarm.get_connections()) == 1


async def test_both_may_dial_at_once():
    async with host() as here, host() as there:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.connect, there.listen_addresses())
            nursery.start_soon(there.connect, here.listen_addresses())
        await assert_alive(here, there)
        await assert_alive(there, here)


async def test_another_node_at_the_address_is_found_out():
    other = Identity.generate().peer
    async with host() as here, host() as there:
        (address,) = there.listen_addresses()
        with pytest.raises(PeerMisbehaved, match="another node than"):
            await here.connect([address.replace(there.peer, other)])
        assert here.connections() == frozenset()
        assert await here.connect([address.replace(there.peer, other), address][1:]) == there.peer


async def test_a_closed_port_is_named_with_its_reason():
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        peer = Identity.generate().peer
        async with host() as here:
            with pytest.raises(PeerUnreachable, match=rf"tcp/{port}/p2p/{peer}: .*Connection refused"):
                await here.connect([f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"])


async def test_a_silent_address_fails_within_its_timeout_and_another_one_is_tried_meanwhile():
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = silent.socket.getsockname()[1]
    async with host(dial_timeout=0.5) as here, host() as there:
        dead = f"/ip4/127.0.0.1/tcp/{port}/p2p/{there.peer}"
        with trio.fail_after(30), pytest.raises(PeerUnreachable, match=r"no answer within 0\.5 s"):
            await here.connect([dead])
        assert await here.connect([dead, *there.listen_addresses()]) == there.peer
    await silent.aclose()


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        ([], "no address is known"),
        (["nonsense"], "is not an address like"),
        (["/ip4/127.0.0.1/tcp/1"], "is not an address like"),
        (["/ip4/127.0.0.1/tcp/1/p2p/QmNotOurs"], "is not the peer id"),
        ([f"/ip4/127.0.0.1/tcp/1/p2p/{Identity(bytes([n]) * 32).peer}" for n in (1, 2)], "name different peers"),
    ],
)
async def test_addresses_that_lead_nowhere_are_refused(addresses, why):
    async with host() as here:
        with pytest.raises(PeerUnreachable, match=why):
            await here.connect(addresses)


async def test_a_host_does_not_dial_itself():
    async with host() as here:
        with pytest.raises(PeerUnreachable, match="this node itself"):
            await here.connect(here.listen_addresses())


async def test_a_stranger_or_an_unknown_protocol_gets_no_stream():
    async with two_hosts() as (here, there):
        with pytest.raises(PeerUnreachable, match="does not speak /test/unknown/1"):
            await here.open_stream(there.peer, "/test/unknown/1")
        with pytest.raises(PeerUnreachable, match="there is no connection"):
            await here.open_stream(Identity.generate().peer, ECHO)
        await assert_alive(here, there)


async def test_a_port_that_is_taken_is_an_error_of_the_settings():
    async with host() as here:
        port = int(here.listen_addresses()[0].split("/")[4])
        with pytest.raises(ConfigError, match=f"port {port}.*--p2p-port"):
            async with host(port=port):
                pass


async def test_a_failing_handler_ends_its_stream_and_nothing_else():
    async with two_hosts() as (here, there):
        kept = await here.open_stream(there.peer, ECHO)
        for _ in range(5):
            stream = await here.open_stream(there.peer, BROKEN)
            assert await stream.receive_some() == b""
            await stream.aclose()
        await kept.send_all(b"kept")
        assert await receive_exactly(kept, 4) == b"kept"
        await assert_alive(there, here)


async def test_hundreds_of_cancelled_reads_and_writes_cost_neither_the_connection_nor_a_byte():
    rng = random.Random(7)
    async with two_hosts() as (here, there):
        (connection,) = here._connections.swarm.get_connections()
        stream = await here.open_stream(there.peer, ECHO)
        sent, received = bytearray(), bytearray()
        cancelled = 0
        for _ in range(300):
            data = rng.randbytes(rng.randrange(1, 2000))
            await stream.send_all(data)
            sent += data
            while len(received) < len(sent) and rng.random() < 0.9:
                with trio.move_on_after(rng.choice([0, 0, 0.0001, 0.0005, 0.001])) as scope:
                    received += await stream.receive_some(rng.choice([1, 7, 100, 5000]))
                cancelled += scope.cancelled_caught
        received += await receive_exactly(stream, len(sent) - len(received))
        assert received == sent
        assert cancelled > 100
        for _ in range(100):  # without the patches a connection is lost after eight at most
            doomed = await here.open_stream(there.peer, ECHO)
            with trio.move_on_after(rng.choice([0, 0.0002, 0.001, 0.002])):
                await doomed.send_all(bytes(rng.randrange(1, 600_000)))
            await doomed.aclose()
        await stream.send_all(b"after all")
        assert await receive_exactly(stream, 9) == b"after all"
        assert here._connections.swarm.get_connections() == [connection]


async def test_cancelled_openings_leave_nothing_open():
    rng = random.Random(3)
    async with two_hosts() as (here, there):
        (connection,) = here._connections.swarm.get_connections()
        for _ in range(300):
            with trio.move_on_after(rng.choice([0, 0.0002, 0.001, 0.003])):
                stream = await here.open_stream(there.peer, ECHO)
                await stream.aclose()
        await assert_alive(here, there)
        assert here._connections.swarm.get_connections() == [connection]
        assert not connection.streams
        assert connection.muxed_conn.stream_backlog_semaphore.value == 256


async def test_many_more_connections_in_turn_than_at_once_are_accepted():
    async with host(max_connections=16) as there, host() as here:
        for _ in range(80):
            await here.connect(there.listen_addresses())
            await here.disconnect(there.peer)
        await alone(there)
        await here.connect(there.listen_addresses())
        await assert_alive(here, there)


async def test_the_number_of_connections_is_limited_and_those_that_are_there_stay():
    async with host(max_connections=4) as there, host() as first:
        await first.connect(there.listen_addresses())
        there.vouch(first.peer)
        refused = 0
        async with trio.open_nursery() as nursery:
            release = trio.Event()

            async def newcomer(task_status):
                nonlocal refused
                async with host() as another:
                    there.vouch(another.peer)
                    try:
                        await another.connect(there.listen_addresses())
                        await another.open_stream(there.peer, ECHO)
                    except PeerUnreachable:
                        refused += 1
                    task_status.started()
                    await release.wait()

            for _ in range(6):
                await nursery.start(newcomer)
            assert refused >= 2
            await assert_alive(first, there)
            release.set()


async def test_a_connection_that_nobody_uses_is_closed_and_one_in_use_stays(monkeypatch):
    monkeypatch.setattr(libp2p_connections, "_IDLE", 0.2)
    async with two_hosts() as (here, there), host() as idle:
        stream = await here.open_stream(there.peer, ECHO)
        await idle.connect(there.listen_addresses())
        await alone(idle)
        await stream.send_all(b"in use")
        assert await receive_exactly(stream, 6) == b"in use"
        assert there.connections() == {here.peer}


async def test_garbage_and_silence_on_the_port_do_no_harm():
    async with two_hosts() as (here, there):
        port = int(there.listen_addresses()[0].split("/")[4])
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(100)]
        rng = random.Random(5)
        for size in (0, 1, 20, 5000, 200_000):
            loud = await trio.open_tcp_stream("127.0.0.1", port)
            with trio.move_on_after(1):
                try:
                    await loud.send_all(rng.randbytes(size))
                    await loud.send_all(b"\x13/multistream/1.0.0\n\x07/noise\n" + rng.randbytes(size))
                    await loud.send_eof()
                    await loud.receive_some()
                except trio.BrokenResourceError:
                    pass
            await loud.aclose()
        await assert_alive(here, there)
        for stream in silent:
            await stream.aclose()
        async with host() as newcomer:
            await trio.sleep(0.1)
            await newcomer.connect(there.listen_addresses())
            await assert_alive(newcomer, there)


async def test_a_peer_that_is_gone_is_noticed_by_who_reads_or_writes():
    async with host() as here:
        async with host() as there:
            await here.connect(there.listen_addresses())
            reading, writing = [await here.open_stream(there.peer, SINK) for _ in range(2)]
        with trio.fail_after(10):
            with suppress(trio.BrokenResourceError):
                assert await reading.receive_some() == b""
            with pytest.raises(trio.BrokenResourceError):
                await send_for_ever(writing)
            await alone(here)


FROZEN = """
import trio
from meshnode.crypto.identity import Identity
from meshnode.network import libp2p_connections
from meshnode.network.host import HostSettings, open_host

async def sink(stream):
    await trio.sleep_forever()

async def main():
    async with open_host(Identity.generate(), HostSettings(host="127.0.0.1"), {"/test/sink/1": sink}) as host:
        print(host.listen_addresses()[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_frozen_peer_is_hung_up_on_without_waiting_for_it():
    process = await trio.lowlevel.open_process([sys.executable, "-c", FROZEN], stdout=subprocess.PIPE)
    try:
        address = (await process.stdout.receive_some()).decode().strip()
        async with host() as here:
            peer = await here.connect([address])
            stream = await here.open_stream(peer, "/test/sink/1")
            os.kill(process.pid, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _():
                    with pytest.raises(trio.BrokenResourceError):
                        await send_for_ever(stream)

                await trio.sleep(0.5)
                with trio.fail_after(5):
                    await here.disconnect(peer)
            assert here.connections() == frozenset()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def test_a_crash_inside_libp2p_comes_out_of_the_context():
    async def crash():
        raise ZeroDivisionError("inside")

    with trio.fail_after(20), pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with host() as here:
            here._connections.swarm.manager.run_task(crash)
            await trio.sleep_forever()


async def test_leaving_the_context_closes_everything_while_streams_are_in_use():
    async with host() as there:
        async with host() as here:
            await here.connect(there.listen_addresses())
            streams = [await here.open_stream(there.peer, name) for name in (ECHO, SINK) * 5]
        for stream in streams:
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await send_for_ever(stream)
        with trio.fail_after(10):
            await alone(there)
