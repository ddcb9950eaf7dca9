"""Sixty nodes in memory, and three over sockets."""

import random
from contextlib import suppress

import msgspec
import pytest
import trio

from meshnode.crypto.identity import Identity
from meshnode.errors import PeerMisbehaved, PeerUnreachable
from meshnode.network.addresses import parse_address
from meshnode.network.dht import Dht, Find, Found, Provide
from meshnode.network.host import HostSettings, open_host
from meshnode.network.short_messages import ask, send_message


class MemoryStream:
    is_relayed = False
    is_lan = False

    def __init__(self, stream, peer):
        self.stream = stream
        self.peer = peer

    async def send_all(self, data):
        await trio.sleep(0.02)
        await self.stream.send_all(data)

    async def receive_some(self, max_bytes=None):
        return await self.stream.receive_some(max_bytes)

    async def aclose(self):
        await self.stream.aclose()


class Node:
    def __init__(self, net, number):
        self.net = net
        self.peer = Identity(number.to_bytes(32, "big")).peer
        self.address = f"/ip4/192.0.2.7/tcp/{1000 + number}/p2p/{self.peer}"
        self.linked = set()
        self.dht = Dht(self.peer, net.name, self, lambda: (self.address,))
        self.asked = 0
        net.nodes[self.peer] = self

    def connections(self):
        return frozenset(self.linked & self.net.nodes.keys())

    def members(self):
        return self.connections()

    async def connect(self, addresses):
        if not addresses:
            raise PeerUnreachable("no address is known")
        await trio.sleep(0.02)
        peer = parse_address(addresses[0]).peer
        if peer not in self.net.nodes:
            raise PeerUnreachable("gone")
        self.linked.add(peer)
        self.net.nodes[peer].linked.add(self.peer)
        return peer

    async def open_stream(self, peer, protocol):
        if peer not in self.connections():
            raise PeerUnreachable("not connected")
        node = self.net.nodes[peer]
        node.asked += 1
        near, far = trio.testing.memory_stream_pair()
        self.net.nursery.start_soon(node.serve, MemoryStream(far, self.peer))
        return MemoryStream(near, peer)

    async def serve(self, stream):
        with suppress(PeerUnreachable):
            await self.dht.serve(stream)


class Net:
    def __init__(self, nursery, count=60, name="ours"):
        self.nursery = nursery
        self.name = name
        self.nodes = {}
        rng = random.Random(1)
        everyone = [Node(self, number) for number in range(count)]
        for index, node in enumerate(everyone[1:], 1):
            other = everyone[rng.randrange(index)]
            node.linked.add(other.peer)
            other.linked.add(node.peer)
        self.everyone = everyone

    async def settle(self):
        for node in self.everyone:
            await node.dht._look_up(node.dht._table.point(node.peer))
        for node in self.everyone:
            node.linked.clear()  # idle connections are closed


async def test_what_one_node_provides_another_finds_over_several_hops(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = Net(nursery)
        await net.settle()
        providers = net.everyone[3], net.everyone[47]
        for provider in providers:
            await provider.dht.provide(b"shard 7")
        for node in net.everyone:
            node.asked = 0
            node.linked.clear()
        found = await net.everyone[20].dht.find_providers(b"shard 7")
        assert set(found) == {(provider.peer, (provider.address,)) for provider in providers}
        assert sum(node.asked for node in net.everyone) < len(net.everyone)
        assert await net.everyone[20].dht.find_providers(b"shard 8") == ()
        assert len(await net.everyone[5].dht.find_providers(b"shard 7", 1)) == 1
        nursery.cancel_scope.cancel()


async def test_it_is_found_though_a_third_of_the_nodes_has_gone(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = Net(nursery)
        await net.settle()
        await net.everyone[0].dht.provide(b"shard")
        for node in random.Random(3).sample(net.everyone[2:], 20):
            del net.nodes[node.peer]
        found = await net.everyone[1].dht.find_providers(b"shard")
        assert [peer for peer, _ in found] == [net.everyone[0].peer]
        nursery.cancel_scope.cancel()


async def test_what_is_not_renewed_is_forgotten_and_what_is_renewed_stays(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = Net(nursery, count=10)
        await net.settle()
        staying, leaving = net.everyone[:2]
        for node in (staying, leaving):
            nursery.start_soon(node.dht.run)
            await node.dht.provide(b"shard")
        leaving.dht.withdraw(b"shard")
        await trio.sleep(2500)
        found = await net.everyone[5].dht.find_providers(b"shard")
        assert [peer for peer, _ in found] == [staying.peer]
        nursery.cancel_scope.cancel()


async def test_a_node_alone_finds_nothing_and_does_not_fail(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = Net(nursery, count=1)
        await net.everyone[0].dht.provide(b"shard")
        assert await net.everyone[0].dht.find_providers(b"shard") == ()


@pytest.mark.parametrize("garbage", [b"\0\1x", b"\0\3\x80\x80\x80", b"\xff\xff", b"\0\0"])
async def test_garbage_is_refused(garbage, autojump_clock):
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        node = Net(nursery, count=1).everyone[0]
        await near.send_all(garbage)
        await near.send_eof()
        with pytest.raises((PeerMisbehaved, PeerUnreachable)):
            await node.dht.serve(MemoryStream(far, Identity(bytes(32)).peer))


async def test_a_point_of_the_wrong_size_is_refused(autojump_clock):
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        node = Net(nursery, count=1).everyone[0]
        stream = MemoryStream(near, node.peer)
        await send_message(stream, Find(b"short", ()))
        with pytest.raises(PeerMisbehaved, match="5 bytes"):
            await node.dht.serve(MemoryStream(far, Identity(bytes(32)).peer))


async def test_nobody_can_be_announced_by_another(autojump_clock):
    async with trio.open_nursery() as nursery:
        net = Net(nursery, count=3)
        liar, victim, node = net.everyone
        liar.linked.add(node.peer)
        stream = await liar.open_stream(node.peer, node.dht.protocol)
        assert await ask(stream, Provide(bytes(32), (victim.address,)), Found, 5) is not None
        answer = await ask(stream, Find(bytes(32), ()), Found, 5)
        assert answer.providers == ()
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_does_not_keep_its_stream(autojump_clock):
    _near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        node = Net(nursery, count=1).everyone[0]
        await node.dht.serve(MemoryStream(far, Identity(bytes(32)).peer))
    assert trio.current_time() > 1


def test_the_messages_on_the_wire():
    golden = {
        Find(b"p", ("a",)): "83a474797065a466696e64a5706f696e74c40170a96164647265737365739 1a161".replace(" ", ""),
        Provide(b"p", ()): "83a474797065a770726f76696465a5706f696e74c40170a961646472657373657390",
        Found(): "82a66e656172657290a970726f76696465727390",
    }
    for message, frame in golden.items():
        assert msgspec.msgpack.encode(message).hex() == frame


@pytest.mark.processes
async def test_over_sockets_and_apart_from_another_network():
    asked = []

    async def note(stream):
        asked.append(stream.peer)

    def host(network_id, **handlers):
        return open_host(Identity.generate(), HostSettings(host="127.0.0.1", network_id=network_id), handlers)

    async with (
        host("ours") as first,
        host("ours") as middle,
        host("ours") as last,
        host("theirs", **{middle._dht.protocol: note}) as foreign,
    ):
        for each in (first, last, foreign):
            await each.connect(middle.listen_addresses())
            each.vouch(middle.peer)
        await first.provide(b"shard")
        assert await last.find_providers(b"shard") == ((first.peer, first.listen_addresses()),)
        assert await foreign.find_providers(b"shard") == ()
        await foreign.provide(b"shard")
        assert await last.find_providers(b"shard") == ((first.peer, first.listen_addresses()),)
        await middle.find_providers(b"another")
        assert asked == []  # whoever is asked knows what to ask with
