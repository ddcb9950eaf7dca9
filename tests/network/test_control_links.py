"""One control link per peer, whoever dials and however often; in memory and on virtual time."""

import itertools
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from support.memory_hosts import identity_of

from meshnode.errors import PeerMisbehaved, PeerRefused, PeerUnreachable
from meshnode.flow.latest import Latest
from meshnode.network.control_links import ControlLinks, LinkPorts
from meshnode.network.gossip import GossipBook
from meshnode.network.greetings import Greeter
from meshnode.network.peers import PeerTable
from meshnode.types.peers import Liveness, Offer
from meshnode.wire.control_messages import IntroductionsWanted
from meshnode.wire.protocols import CONTROL_MESSAGES


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


@attrs.define(eq=False)
class Stream:
    inner: object
    peer: str
    is_relayed: bool = False
    is_lan: bool = False

    async def send_all(self, data):
        await self.inner.send_all(data)

    async def receive_some(self, max_bytes=None):
        return await self.inner.receive_some(max_bytes)

    async def aclose(self):
        await self.inner.aclose()


@attrs.define(eq=False)
class Side:
    """One node's links, and what came of them."""

    number: int
    nursery: trio.Nursery
    limit: int = 64
    network: str = "home"
    clock: object = lambda: 1e9
    received: list = attrs.field(factory=list)
    direct_ways: list = attrs.field(factory=list)
    offences: list = attrs.field(factory=list)
    refused: list = attrs.field(factory=list)
    greeted: list = attrs.field(factory=list)
    heard_by: object = None  # takes what arrives, too
    table: PeerTable = attrs.field(init=False)
    links: ControlLinks = attrs.field(init=False)
    book: GossipBook = attrs.field(init=False)

    def __attrs_post_init__(self):
        identity = identity_of(self.number)
        self.table = PeerTable(identity.peer, Latest({}))
        self.book = GossipBook(identity, self.network, self.clock)
        ports = LinkPorts(
            self.take,
            self.direct_ways.append,
            lambda peer, error: self.offences.append((peer, error)),
            greeted=self.greeted.append,
        )
        greeter = Greeter(identity.peer, self.network, clock=self.clock)
        self.links = ControlLinks(greeter, self.limit, self.table, self.book, ports)

    @property
    def peer(self):
        return identity_of(self.number).peer

    async def take(self, received):
        self.received.append(received.message)
        if self.heard_by is not None:
            await self.heard_by(received)

    async def serve(self, stream, *, opened, for_route=False):
        try:
            await self.links.serve(stream, opened=opened, for_route=for_route)
        except (PeerRefused, PeerUnreachable, PeerMisbehaved) as error:
            self.refused.append(error)

    async def dial(self, other, *, for_route=False, **kind):
        """Open a link and wait until nothing more happens."""
        near, far = trio.testing.memory_stream_pair()
        stream = Stream(near, other.peer, **kind)
        self.nursery.start_soon(lambda: self.serve(stream, opened=True, for_route=for_route))
        other.nursery.start_soon(lambda: other.serve(Stream(far, self.peer, **kind), opened=False))
        await trio.sleep(2)

    def info(self, other):
        return self.table.peer(other.peer)


@asynccontextmanager
async def sides(*numbers, **options):
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            yield [Side(number, nursery, **options) for number in numbers]
            nursery.cancel_scope.cancel()


def by_id(*numbers):
    return sorted(numbers, key=lambda number: identity_of(number).peer)


async def test_a_link_is_told_to_the_table_and_carries_messages_both_ways(autojump_clock):
    async with sides(1, 2) as (here, there):
        await here.dial(there, is_lan=True)
        assert here.links.peers() == {there.peer}
        assert here.info(there).lan
        assert not here.info(there).relayed
        await here.links.to(there.peer).send(IntroductionsWanted(1))
        await there.links.to(here.peer).send(IntroductionsWanted(2))
        await trio.sleep(1)
        assert (there.received, here.received) == ([IntroductionsWanted(1)], [IntroductionsWanted(2)])
        assert here.offences == there.offences == []


async def test_what_each_knows_reaches_the_other_as_soon_as_they_are_linked(autojump_clock):
    async with sides(1, 2) as (here, there):
        here.book.publish(Offer(here.peer, 1, 1e9, "1", ()))
        await here.dial(there)
        (records,) = there.received
        assert [record.signer for record in records.records] == [here.peer]


async def test_a_word_reaches_everybody_by_few_messages_and_those_who_are_not_linked_with_its_speaker_too(
    autojump_clock,
):
    async with sides(*range(1, 11)) as nodes:
        said = []
        for one, other in itertools.combinations(nodes, 2):
            if one is not nodes[0] or other is not nodes[-1]:
                await one.dial(other)
        for node in nodes:

            async def take(received, node=node):
                said.append((received.link.peer, node.peer))
                for record in received.message.records:
                    node.links.neighbour(received.link.peer).heard(record)
                    if node.book.accept(record) is not None:
                        node.links.spread(record.signer)

            node.heard_by = take
        await trio.sleep(20.5)  # between two heartbeats
        speaker = nodes[0]
        speaker.book.publish(Offer(speaker.peer, 1, 1e9, "1", ()))
        speaker.links.spread(speaker.peer)
        await trio.sleep(6)
        assert all(node.book.offer(speaker.peer) is not None for node in nodes)
        assert {to for by, to in said if by == speaker.peer} == {node.peer for node in nodes[1:-1]}
        assert (
            len(said) <= 8 + 9 + 8
        )  # by itself, by each that heard it, and to the last when a heartbeat shows that it lacks it
        await trio.sleep(100)
        assert len(said) <= 8 + 9 + 8


async def test_the_end_of_a_link_is_the_end_of_its_peer_until_it_says_something_new(autojump_clock):
    async with sides(1, 2) as (here, there):
        there.book.publish(Offer(there.peer, 1, 1e9, "1", ()))
        await here.dial(there)
        (records,) = here.received
        here.table.heard(here.book.accept(records.records[0]))
        there.links.to(here.peer).close("on purpose")
        await trio.sleep(2)
        assert here.info(there).liveness is Liveness.DEAD
        assert here.links.peers() == frozenset()
        assert here.book.accept(records.records[0]) is None
        with pytest.raises(PeerUnreachable):
            here.links.to(there.peer)


async def test_when_both_have_dialled_one_link_stays_and_both_know_which(autojump_clock):
    for order in (by_id(1, 2), by_id(1, 2)[::-1]):
        async with sides(*order) as (here, there):
            await here.dial(there)
            await there.dial(here)
            one, other = here.links.to(there.peer), there.links.to(here.peer)
            smaller = min(here.peer, there.peer)
            assert one.opened is (here.peer == smaller)
            assert other.opened is (there.peer == smaller)
            assert here.info(there).connected
            assert there.info(here).connected
            await one.send(IntroductionsWanted(1))
            await trio.sleep(1)
            assert there.received[-1:] == [IntroductionsWanted(1)]


async def test_a_newer_link_of_the_same_side_takes_the_place_of_the_older(autojump_clock):
    async with sides(1, 2) as (here, there):
        await here.dial(there)
        old = here.links.to(there.peer)
        await here.dial(there)
        assert here.links.to(there.peer) is not old
        assert old.closed.is_set()
        assert here.info(there).connected
        assert here.info(there).links == 2


@pytest.mark.parametrize("dialler", [0, 1])
async def test_a_direct_link_takes_the_place_of_a_relayed_one_whoever_opens_it(autojump_clock, dialler):
    async with sides(1, 2) as both:
        here, there = both
        await here.dial(there, is_relayed=True)
        assert here.links.relayed() == {there.peer}
        await both[dialler].dial(both[1 - dialler])
        for one, other in ((here, there), (there, here)):
            assert one.links.relayed() == frozenset()
            assert one.info(other).connected
            assert not one.info(other).relayed
            assert one.direct_ways == [other.peer]


@pytest.mark.parametrize("dialler", [0, 1])
async def test_a_relayed_link_never_takes_the_place_of_a_direct_one(autojump_clock, dialler):
    async with sides(1, 2) as both:
        here, there = both
        await here.dial(there)
        await both[dialler].dial(both[1 - dialler], is_relayed=True)
        assert not here.info(there).relayed
        assert not there.info(here).relayed
        assert here.info(there).connected
        assert here.direct_ways == there.direct_ways == []


async def test_one_too_many_is_refused_and_told_why_and_the_others_stay(autojump_clock):
    async with sides(1, 2, 3, limit=1) as (here, first, second):
        await first.dial(here)
        await second.dial(here)
        assert here.links.peers() == {first.peer}
        assert "1 peers already" in str(here.refused[0])
        assert second.links.peers() == frozenset()


async def test_a_route_has_a_place_beyond_the_limit_and_the_one_unused_longest_makes_way(autojump_clock, monkeypatch):
    monkeypatch.setattr("meshnode.network.control_links._FOR_ROUTES", 2)
    async with sides(1, 2, limit=1) as (here, named), sides(3, 4, 5) as (first, second, third):
        await here.dial(named)
        for each in (first, second, third):
            each.book.publish(Offer(each.peer, 1, 1e9, "1", ()))
            await each.dial(here, for_route=True)
            here.table.heard(here.book.accept(each.book.records()[0][0]))
            assert here.links.room == 0
        assert here.links.peers() == {named.peer, second.peer, third.peer}
        assert first.links.peers() == frozenset()
        assert here.info(first).liveness is Liveness.SUSPECT  # known by hearsay: it is not gone
        named.links.to(here.peer).close("on purpose")
        await trio.sleep(2)
        assert here.links.room == 1


async def test_who_is_banned_gets_no_link(autojump_clock):
    async with sides(1, 2) as (here, there):
        here.table.failures.set({there.peer: 100})
        await there.dial(here)
        assert here.links.peers() == there.links.peers() == frozenset()
        assert "too much trouble" in str(here.refused[0])


async def test_who_becomes_banned_is_told_so_and_its_link_ends(autojump_clock):
    async with sides(1, 2, 3) as (here, there, other):
        await here.dial(there)
        await here.dial(other)
        here.links.part_with(there.peer)
        await trio.sleep(2)
        assert here.links.peers() == {other.peer}
        assert there.links.peers() == frozenset()


async def test_another_network_is_refused_by_both(autojump_clock):
    async with sides(1) as (here,), sides(2, network="work") as (there,):
        await there.dial(here)
        assert here.links.peers() == there.links.peers() == frozenset()
        assert here.table.peers() == there.table.peers() == ()
        assert here.greeted == there.greeted == []


async def test_whoever_says_a_valid_hello_is_vouched_for_even_where_there_is_no_room(autojump_clock):
    async with sides(1, limit=0) as (here,), sides(2) as (there,):
        await there.dial(here)
        assert here.links.peers() == frozenset()
        assert here.greeted == [there.peer]


async def test_a_clock_that_is_an_hour_off_is_no_reason_to_stay_apart(autojump_clock):
    async with sides(1) as (here,), sides(2, clock=lambda: 1e9 + 3600) as (there,):
        await here.dial(there)
        for one, other in ((here, there), (there, here)):
            assert one.info(other).connected
            metrics = one.links.ports.metrics.registry
            assert metrics.get_sample_value("meshnode_network_wrong_clocks_total") == 1


@pytest.mark.parametrize("garbage", [b"\xff" * 100, b"\x00" * 100, b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
async def test_garbage_instead_of_a_greeting_is_held_against_the_peer(autojump_clock, garbage):
    async with sides(1, 2) as (here, there):
        near, far = trio.testing.memory_stream_pair()
        here.nursery.start_soon(lambda: here.serve(Stream(near, there.peer), opened=False))
        await far.send_all(garbage)
        await trio.sleep(10)
        assert here.links.peers() == frozenset()
        assert len(here.refused) == 1


async def test_garbage_on_a_link_ends_it_and_is_held_against_the_peer(autojump_clock):
    async with sides(1, 2) as (here, there):
        await here.dial(there)
        await there.links.to(here.peer).stream.send_all(b"\xff" * 100)
        await trio.sleep(5)
        assert here.links.peers() == frozenset()
        ((peer, error),) = here.offences
        assert peer == there.peer
        assert isinstance(error, PeerMisbehaved)


async def test_a_peer_that_says_nothing_more_is_given_up_after_three_heartbeats(autojump_clock):
    async with sides(1, 2) as (here, there):
        near, far = trio.testing.memory_stream_pair()
        here.nursery.start_soon(lambda: here.serve(Stream(near, there.peer), opened=True))
        hello = there.links.greeter.hello()
        await far.send_all(CONTROL_MESSAGES.to_frame(hello, b"", 0))
        await trio.sleep(4)
        assert here.info(there).liveness is Liveness.ALIVE
        await trio.sleep(8)
        assert here.info(there).liveness is Liveness.SUSPECT
        await trio.sleep(12)
        assert here.info(there).liveness is Liveness.DEAD
