"""Multicast DNS with the real zeroconf on the loopback interface, where no other machine hears it."""

from contextlib import asynccontextmanager

import pytest
import trio
from support.memory_hosts import identity_of

from meshnode.config.schema import NetworkConfig, NodeConfig
from meshnode.flow.latest import Latest
from meshnode.network.address_book import open_address_book
from meshnode.network.local_discovery import LocalDiscovery
from meshnode.node.channels import Channels
from meshnode.node.network import Mesh
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse

pytestmark = pytest.mark.processes


def address(number, port):
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity_of(number).peer}"


class Ears:
    def __init__(self):
        self.heard, self.news = {}, trio.Event()

    def __call__(self, peer, addresses):
        self.heard[peer] = tuple(addresses)
        self.news.set()
        self.news = trio.Event()

    async def until(self, condition):
        while not condition(self.heard):
            await self.news.wait()


@asynccontextmanager
async def nodes(*members):
    """Run the discovery of nodes, each a number, a network and where it listens; yield what each has heard."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            ears = []
            for number, network, listening in members:
                ears.append(Ears())
                nursery.start_soon(LocalDiscovery(identity_of(number).peer, network).run, listening, ears[-1])
            yield ears
            nursery.cancel_scope.cancel()


async def test_nodes_of_one_network_find_each_other_and_no_others():
    here, there = identity_of(1).peer, identity_of(2).peer
    members = [
        (1, "home", Latest((address(1, 4001),))),
        (2, "home", Latest((address(2, 4002),))),
        (3, "work", Latest((address(3, 4003),))),
    ]
    async with nodes(*members) as (ours, theirs, strangers):
        await ours.until(lambda heard: there in heard)
        await theirs.until(lambda heard: here in heard)
        assert ours.heard == {there: (address(2, 4002),)}
        assert theirs.heard == {here: (address(1, 4001),)}
        assert strangers.heard == {}


async def test_a_node_that_listens_elsewhere_is_found_there():
    listening = Latest(())
    async with nodes((1, "home", Latest((address(1, 4001),))), (2, "home", listening)) as (ours, _):
        listening.set((address(2, 4002),))
        await ours.until(lambda heard: address(2, 4002) in heard.get(identity_of(2).peer, ()))
        listening.set((address(2, 4005), f"{address(1, 4001)}/p2p-circuit/p2p/{identity_of(2).peer}"))
        await ours.until(lambda heard: heard.get(identity_of(2).peer) == (address(2, 4005),))


@pytest.mark.parametrize("mdns", [True, False])
async def test_the_setting_links_nodes_that_nobody_has_named(mdns):
    config = NodeConfig(network=NetworkConfig(host="127.0.0.1", port=0, network_id="found", mdns=mdns))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            meshes = []
            for number in (1, 2):
                book = await open_address_book(MemoryStore(), "found")
                mesh = Mesh(identity_of(number), config, Channels(), book, HealthBoard(), Metrics())
                meshes.append(mesh)
                for build in (mesh.builders().manager, mesh.builders().dispatcher):
                    await nursery.start(build(Pulse()).run)
            here, there = meshes
            with trio.move_on_after(60 if mdns else 3):
                while not (info := here.table.peer(there.peer)) or not info.connected:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert (here.table.peer(there.peer) is not None) is mdns
            nursery.cancel_scope.cancel()
