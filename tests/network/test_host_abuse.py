"""A real host on loopback, and what strangers and peers may do to it: it refuses, counts, and goes on serving."""

import random
import resource
import socket
from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError

from meshnode.crypto.identity import Identity
from meshnode.errors import PeerUnreachable
from meshnode.network import host as host_module
from meshnode.network import libp2p_connections
from meshnode.network.host import HostSettings, open_host
from meshnode.network.libp2p_streams import Carrier

pytestmark = pytest.mark.processes

ECHO, SINK = "/test/echo/1", "/test/sink/1"
NOISE = b"\x13/multistream/1.0.0\n\x07/noise\n"


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


async def sink(stream):
    await trio.sleep_forever()


@asynccontextmanager
async def served(**settings):
    """Yield a host, a peer of it with an open stream, and what the host has refused."""
    refused = Counter()
    with trio.fail_after(120):
        settings = HostSettings(host="127.0.0.1", **settings)
        handlers = {ECHO: echo, SINK: sink}
        async with (
            open_host(Identity.generate(), settings, handlers, refused=lambda why: refused.update([why])) as host,
            open_host(Identity.generate(), settings, handlers) as peer,
        ):
            await peer.connect(host.listen_addresses())
            host.vouch(peer.peer)  # as a valid Hello would
            yield host, peer, refused


async def echoes(host, peer):
    stream = await peer.open_stream(host.peer, ECHO)
    await stream.send_all(b"still there?")
    got = b""
    while len(got) < 12:
        got += await stream.receive_some(12)
    await stream.aclose()
    return got == b"still there?"


async def newcomer_is_served(host):
    async with open_host(Identity.generate(), HostSettings(host="127.0.0.1"), {}) as newcomer:
        await newcomer.connect(host.listen_addresses())
        return await echoes(host, newcomer)


async def read_to_the_end(stream):
    with suppress(BaseLibp2pError):
        while await stream.read(100):
            pass


@pytest.fixture
def patient(monkeypatch):
    """No handshake takes too long: what is refused, is refused for another reason."""
    monkeypatch.setattr(host_module, "_HANDSHAKE", 1000.0)
    monkeypatch.setattr(libp2p_connections, "_HANDSHAKE", 1000)


def port_of(host):
    return int(host.listen_addresses()[0].split("/")[4])


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


@pytest.fixture
def flood_size():
    """10,000 connections, with the limit of open files raised for them; fewer only where its hard limit forbids so many."""
    wanted, spare = 10_000, 1000  # the host, its peers, and what pytest has open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted + spare if hard == resource.RLIM_INFINITY else min(hard, wanted + spare)
    assert allowed > spare, f"the hard limit of open files, {hard}, leaves no flood; raise it with ulimit -Hn"
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    yield allowed - spare
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_ten_thousand_connections_are_turned_away_and_peers_served(flood_size):
    """As many as `flood_size` says, 10,000 where the hard limit of open files is 11,000 or more; a failure says how many."""
    count, flood = flood_size, []
    try:
        async with served() as (host, peer, refused):
            port = port_of(host)
            for number in range(count):
                one = socket.socket()
                one.setblocking(False)
                one.bind((f"127.0.{1 + number // 250 % 4}.{1 + number % 250}", 0))
                with suppress(BlockingIOError):
                    one.connect(("127.0.0.1", port))
                flood.append(one)
                if number % 50 == 0:  # what the kernel's queue has no room for comes again seconds later
                    await until(lambda sent=number: sent - refused["handshake"] < 1000)
                if number % 2000 == 0:
                    assert await echoes(host, peer)
            assert await newcomer_is_served(host), f"after {count} connections"
            assert await echoes(host, peer), f"after {count} connections"
            await until(lambda: refused["handshake"] >= count - host_module._HANDSHAKES)
            assert len(host._anteroom) <= host_module._HANDSHAKES, f"of {count} connections"
            assert host.connections() == {peer.peer}
    finally:
        for one in flood:
            one.close()


async def test_half_open_connections_give_up_their_places_after_a_while(monkeypatch):
    monkeypatch.setattr(host_module, "_HANDSHAKE", 0.3)
    async with served() as (host, peer, refused):
        silent = [await trio.open_tcp_stream("127.0.0.1", port_of(host)) for _ in range(30)]
        halfway = [await trio.open_tcp_stream("127.0.0.1", port_of(host)) for _ in range(30)]
        for stream in halfway:
            await stream.send_all(NOISE)
        assert await newcomer_is_served(host)
        await until(lambda: refused["handshake"] >= 60)
        assert len(host._anteroom) == 0
        assert await echoes(host, peer)
        for stream in silent + halfway:
            await stream.aclose()


@pytest.mark.parametrize("greeting", [b"", NOISE])
async def test_garbage_is_refused_and_counted(greeting):
    rng = random.Random(5)
    async with served() as (host, peer, refused):
        for size in (1, 20, 5000, 200_000):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(host))
            with suppress(trio.BrokenResourceError):
                await stream.send_all(greeting + rng.randbytes(size))
                await stream.send_eof()
            await until(lambda: refused.total() >= 1)
            await stream.aclose()
            refused.clear()
        assert await echoes(host, peer)


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80" * 40])
async def test_a_message_said_to_be_endless_is_not_waited_for(patient, length):
    async with served() as (host, peer, refused):
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(host))
        async with stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(length + b"x" * 100_000)
            await until(lambda: refused["handshake"] == 1)
        assert await newcomer_is_served(host)
        assert await echoes(host, peer)


async def test_a_peer_that_reads_nothing_holds_up_nobody_else():
    async with (
        served() as (host, peer, _),
        open_host(Identity.generate(), HostSettings(host="127.0.0.1"), {}) as slow,
        trio.open_nursery() as nursery,
    ):
        await slow.connect(host.listen_addresses())
        stream = await slow.open_stream(host.peer, ECHO)

        async def send():
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while True:
                    await stream.send_all(bytes(100_000))

        nursery.start_soon(send)
        for _ in range(20):
            assert await echoes(host, peer)
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x08"])
async def test_a_name_of_a_protocol_that_is_said_to_be_endless_ends_its_stream_only(patient, length):
    async with served() as (host, peer, _):
        (connection,) = peer._connections.swarm.get_connections()
        stream = await connection.new_stream()
        await stream.write(b"\x13/multistream/1.0.0\n" + length + b"x" * 1000)
        await read_to_the_end(stream)
        assert await echoes(host, peer)


async def test_nobody_is_told_the_names_of_protocols_that_only_our_network_knows():
    async with served() as (host, peer, _):
        (connection,) = peer._connections.swarm.get_connections()
        stream = await connection.new_stream()
        await stream.write(b"\x13/multistream/1.0.0\n\x03ls\n")
        said = b""
        with suppress(BaseLibp2pError):
            while more := await stream.read(1000):
                said += more
        assert said == b"\x13/multistream/1.0.0\n"
        assert await echoes(host, peer)


async def test_a_peer_cannot_open_streams_without_end():
    async with served() as (host, peer, _):
        for _ in range(64):
            await peer.open_stream(host.peer, SINK)
        with pytest.raises(PeerUnreachable, match="64 streams to"):
            await peer.open_stream(host.peer, SINK)
        assert await newcomer_is_served(host)


async def test_strangers_who_prove_who_they_are_and_nothing_else_keep_nobody_out(monkeypatch):
    monkeypatch.setattr(host_module, "_STRANGER", 2.0)

    async def besiege(stranger, host, source):
        """Take every place that can be had from an address, and again what is lost."""
        while True:
            with suppress(PeerUnreachable, OSError):
                stream = await trio.open_tcp_stream("127.0.0.1", port_of(host), local_address=source)
                try:
                    await stranger._connections.secure_outbound(Carrier(stream, None), host.peer, relayed=False)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
            await trio.sleep(0.05)

    foreign = HostSettings(host="127.0.0.1", network_id="foreign")
    async with (
        served(max_connections=8) as (host, peer, refused),
        open_host(Identity.generate(), foreign, {}) as one,
        open_host(Identity.generate(), foreign, {}) as other,
        open_host(Identity.generate(), HostSettings(host="127.0.0.1"), {}) as newcomer,
        trio.open_nursery() as nursery,
    ):
        for stranger, source in ((one, "127.0.0.1"), (other, "127.0.0.2")) * 2:
            nursery.start_soon(besiege, stranger, host, source)
        await until(lambda: refused["stranger"] >= 4)
        while newcomer.peer not in host.members():
            with suppress(PeerUnreachable):
                await newcomer.connect(host.listen_addresses())
                newcomer.vouch(host.peer)
                await newcomer.find_providers(b"whatever")  # in the table of our network
            await trio.sleep(0.01)
        before = refused["stranger"]
        await until(lambda: refused["stranger"] >= before + 8)
        assert host.connections() >= {peer.peer, newcomer.peer}
        assert await echoes(host, newcomer)
        assert await echoes(host, peer)
        nursery.cancel_scope.cancel()
