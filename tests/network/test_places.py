"""When a node takes a place at a relay; on virtual time."""

import pytest
import trio
import trio.testing
from support.memory_hosts import open_internet

from meshnode.types.peers import Liveness


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


async def test_two_that_reach_only_a_third_are_linked_through_it(autojump_clock):
    async with open_internet() as net:
        middle = await net.start(1)
        near, far = await net.member(2, bootstrap=(1,)), await net.member(3, bootstrap=(1,))
        net.cut(near, far)
        net.relaying.add(middle.own)
        for member in (near, far):
            await net.nursery.start(member.build().run)
        await trio.sleep(60)
        assert near.row(far.own).relayed
        assert far.row(near.own).relayed
        assert near.row(far.own).liveness is Liveness.ALIVE
        assert not near.row(middle.own).relayed
        assert any("circuit" in address for address in far.resources.listening.value)

        assert near.direct_ways == []
        net.cuts.clear()
        await trio.sleep(120)
        for one, other in ((near, far), (far, near)):
            assert one.row(other.own).connected
            assert not one.row(other.own).relayed
            assert one.direct_ways == [other.own]


async def test_who_is_linked_directly_to_everybody_takes_no_place(autojump_clock):
    async with open_internet() as net:
        middle = await net.start(1)
        net.relaying.add(middle.own)
        for number in (2, 3):
            await net.start(number, bootstrap=(1,))
        await trio.sleep(600)
        assert net.asked == []


async def test_a_relay_that_refuses_is_not_asked_all_the_time_and_another_is(autojump_clock):
    async with open_internet() as net:
        refusing, willing = await net.start(1), await net.start(4, bootstrap=(1,))
        near, far = await net.member(2, bootstrap=(1,)), await net.member(3, bootstrap=(1,))
        net.cut(near, far)
        net.relaying.add(willing.own)
        for member in (near, far):
            await net.nursery.start(member.build().run)
        await trio.sleep(600)
        assert near.row(far.own).relayed
        assert net.asked.count((near.own, willing.own)) == 1
        assert 2 <= net.asked.count((near.own, refusing.own)) <= 30


async def test_a_place_is_taken_anew_when_its_relay_has_been_away(autojump_clock):
    async with open_internet() as net:
        middle = await net.start(1)
        near, far = await net.member(2, bootstrap=(1,)), await net.member(3, bootstrap=(1,))
        net.cut(near, far)
        net.relaying.add(middle.own)
        for member in (near, far):
            await net.nursery.start(member.build().run)
        await trio.sleep(60)
        net.hosts[near.own].places.clear()
        net.hosts[far.own].places.clear()
        await trio.sleep(60)
        assert net.hosts[near.own].places
        assert net.hosts[far.own].places
