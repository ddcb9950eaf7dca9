"""Nodes that have as many peers as they may: what gossip offers is answered all the same."""

from random import Random

import pytest
import trio

from simulation.clock import JumpingClock
from simulation.faults import Faults
from simulation.scenario import BLOCKS, toy_model
from simulation.users import Users
from simulation.world import SimWorld


@pytest.fixture
def autojump_clock():
    return JumpingClock()


async def test_a_route_leads_through_peers_that_there_is_no_room_for(autojump_clock, tmp_path):
    async with trio.open_nursery() as nursery:
        world = SimWorld(nursery, Random(1), toy_model(tmp_path), tmp_path)
        hub = world.add(range(0))
        halves = [world.add(range(BLOCKS // 2)), world.add(range(BLOCKS // 2, BLOCKS))]
        world.bootstrap = (hub.peer,)
        for node in halves:
            node.max_peers = 1
        for node in world.nodes:
            await node.start()
        await trio.sleep(20)
        assert all({info.peer for info in half.table.peers() if info.connected} == {hub.peer} for half in halves)
        users, began = Users(Faults(world, Random(2), [], 0)), trio.current_time()
        await users.ask(halves[0], must=True)
        await users.ask(hub, must=True)
        assert users.answered == 2
        assert trio.current_time() - began < 10
        nursery.cancel_scope.cancel()
