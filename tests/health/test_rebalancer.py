"""When shards are looked at before their time."""

from contextlib import asynccontextmanager

import trio

from meshnode.flow.broadcast import Broadcast
from meshnode.flow.latest import Latest
from meshnode.health.monitor import PeerJoined, PeerLeft
from meshnode.health.rebalancer import RebalancerSettings, ShardRebalancer
from meshnode.supervise.subsystem import Pulse


@asynccontextmanager
async def watching():
    events, nudge = Broadcast("membership"), Latest(0)
    subsystem = ShardRebalancer(events, nudge, Pulse(), RebalancerSettings(grace=60, jitter=10))
    async with trio.open_nursery() as nursery:
        await nursery.start(subsystem.run)
        yield events, nudge
        nursery.cancel_scope.cancel()


async def test_who_goes_and_does_not_come_back_is_told_once_after_the_grace(autojump_clock):
    async with watching() as (events, nudge):
        for name in "abc":
            events.publish(PeerLeft(name))
        await trio.sleep(59)
        assert nudge.value == 0
        await trio.sleep(20)
        assert nudge.value == 1
        await trio.sleep(1000)
        assert nudge.value == 1
        events.publish(PeerJoined("d"))
        await trio.sleep(80)
        assert nudge.value == 2


async def test_who_is_back_in_time_was_never_gone(autojump_clock):
    async with watching() as (events, nudge):
        for _ in range(5):
            events.publish(PeerLeft("a"))
            await trio.sleep(5)
            events.publish(PeerJoined("a"))
            await trio.sleep(5)
        await trio.sleep(200)
        assert nudge.value == 0


async def test_a_mesh_that_never_rests_is_looked_at_all_the_same(autojump_clock):
    async with watching() as (events, nudge):
        for number in range(600):
            events.publish(PeerLeft(str(number)))
            await trio.sleep(1)
        assert 7 <= nudge.value <= 10
