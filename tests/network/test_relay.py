"""Two hosts that know each other only through a third, on loopback."""

import random
from contextlib import asynccontextmanager

import pytest
import trio

from meshnode.crypto.identity import Identity
from meshnode.errors import PeerMisbehaved, PeerRefused, PeerUnreachable
from meshnode.network import relay
from meshnode.network.host import HostSettings, open_host

pytestmark = pytest.mark.processes

ECHO = "/test/echo/1"


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


def host(**settings):
    return open_host(Identity.generate(), HostSettings(host="127.0.0.1", **settings), {ECHO: echo})


@asynccontextmanager
async def three_hosts():
    with trio.fail_after(60):
        async with host() as near, host() as middle, host() as far:
            await far.connect(middle.listen_addresses())
            yield near, middle, far, await far.reserve_relay(middle.peer)


async def receive_exactly(stream, size):
    data = bytearray()
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, "the stream ended early"
        data += more
    return bytes(data)


async def speak_for_ever(stream):
    while True:
        await stream.send_all(bytes(1000))
        await stream.receive_some()


async def test_two_hosts_speak_through_a_third_by_the_relayed_address_alone():
    async with three_hosts() as (near, middle, far, address):
        assert address == f"{middle.listen_addresses()[0]}/p2p-circuit/p2p/{far.peer}"
        assert address in far.listen_addresses()
        assert await near.connect([address]) == far.peer
        stream = await near.open_stream(far.peer, ECHO)
        assert stream.is_relayed
        assert stream.peer == far.peer
        payload = random.Random(2).randbytes(1 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, payload)
            assert await receive_exactly(stream, len(payload)) == payload
        back = await far.open_stream(near.peer, ECHO)
        assert back.is_relayed
        await back.send_all(b"and back")
        assert await receive_exactly(back, 8) == b"and back"
        assert far.connections() == {middle.peer, near.peer}


async def test_the_relay_can_read_nothing(monkeypatch):
    seen = bytearray()
    splice = relay._splice

    class Tapped:
        def __init__(self, stream):
            self.stream = stream

        async def receive_some(self, max_bytes):
            data = await self.stream.receive_some(max_bytes)
            seen.extend(data)
            return data

        async def send_all(self, data):
            await self.stream.send_all(data)

    monkeypatch.setattr(relay, "_splice", lambda near, far: splice(Tapped(near), Tapped(far)))
    async with three_hosts() as (near, _, far, address):
        await near.connect([address])
        stream = await near.open_stream(far.peer, ECHO)
        await stream.send_all(b"a secret " * 100)
        await receive_exactly(stream, 900)
    assert len(seen) > 1800
    assert b"secret" not in seen


async def test_a_relay_cannot_pass_itself_off_as_the_peer():
    async with three_hosts() as (near, middle, far, address):
        stranger = Identity.generate().peer
        middle._relay._reserved[stranger] = middle._relay._reserved[far.peer]
        open_stream = middle._connections.open_stream

        async def misled(peer, protocol):
            return await open_stream(far.peer if peer == stranger else peer, protocol)

        middle._connections.open_stream = misled
        with pytest.raises(PeerMisbehaved, match="another node than"):
            await near.connect([address.replace(far.peer, stranger)])
        assert stranger not in near.connections()


async def test_a_direct_connection_is_made_and_preferred_as_soon_as_there_is_a_way():
    async with three_hosts() as (near, _, far, address):
        await near.connect([address])
        (direct,) = [each for each in far.listen_addresses() if "circuit" not in each]
        assert await near.connect([address, direct]) == far.peer
        stream = await near.open_stream(far.peer, ECHO)
        assert not stream.is_relayed


async def test_a_relayed_connection_serves_while_no_direct_way_works():
    async with three_hosts() as (near, _, far, address):
        dead = f"/ip4/127.0.0.1/tcp/1/p2p/{far.peer}"
        assert await near.connect([dead, address]) == far.peer
        assert await near.connect([dead, address]) == far.peer
        assert (await near.open_stream(far.peer, ECHO)).is_relayed
        assert len(near._connections.swarm.get_connections()) == 2


async def test_who_has_not_asked_to_be_reached_is_not_and_the_reason_arrives():
    async with host() as near, host() as middle, host() as far:
        await far.connect(middle.listen_addresses())
        address = f"{middle.listen_addresses()[0]}/p2p-circuit/p2p/{far.peer}"
        with pytest.raises(PeerUnreachable, match="is not reached through this node"):
            await near.connect([address])


async def test_a_node_that_does_not_relay_says_so():
    async with host() as far, host(relay_service=False) as middle:
        await far.connect(middle.listen_addresses())
        with pytest.raises(PeerUnreachable, match=r"does not speak .*/relay/1"):
            await far.reserve_relay(middle.peer)
        with pytest.raises(PeerUnreachable, match="no connection"):
            await far.reserve_relay(Identity.generate().peer)
        assert all("circuit" not in address for address in far.listen_addresses())


async def test_another_network_is_not_relayed_for():
    async with host(network_id="ours") as far, host(network_id="theirs") as middle:
        await far.connect(middle.listen_addresses())
        with pytest.raises(PeerUnreachable, match="does not speak"):
            await far.reserve_relay(middle.peer)


async def test_the_end_of_the_relay_ends_its_connections_and_its_addresses():
    async with host() as near, host() as far:
        async with host() as middle:
            await far.connect(middle.listen_addresses())
            await near.connect([await far.reserve_relay(middle.peer)])
            stream = await near.open_stream(far.peer, ECHO)
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await speak_for_ever(stream)
        with trio.fail_after(10):
            while any("circuit" in address for address in far.listen_addresses()) or far.connections():  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_the_places_and_circuits_of_a_relay_are_limited_and_given_back(monkeypatch):
    monkeypatch.setattr(relay, "_RESERVATIONS", 1)
    monkeypatch.setattr(relay, "_CIRCUITS_PER_PEER", 1)
    async with three_hosts() as (near, middle, far, address), host() as another:
        await another.connect(middle.listen_addresses())
        with pytest.raises(PeerRefused, match="1 peers are reached through this node already"):
            await another.reserve_relay(middle.peer)
        await near.connect([address])
        with pytest.raises(PeerUnreachable, match="as much as it can"):
            await another.connect([address])
        await near.disconnect(far.peer)
        with trio.fail_after(10):
            while middle._relay._circuits:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await another.connect([address]) == far.peer


async def test_reserving_twice_is_reserving_once():
    async with three_hosts() as (near, middle, far, address):
        assert await far.reserve_relay(middle.peer) == address
        assert len([each for each in far.listen_addresses() if "circuit" in each]) == 1
        assert await near.connect([address]) == far.peer
