"""Who joins, who leaves, and what is held against whom, on virtual time."""

from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio
import trio.testing
from support.link_pairs import make_link, one_link

from meshnode.flow.broadcast import Broadcast
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.health.monitor import HealthMonitor, HealthResources, PeerJoined, PeerLeft
from meshnode.network.peers import PeerTable
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.blocks import BlockRange
from meshnode.types.evidence import Evidence, Misdeed
from meshnode.types.ids import PeerId
from meshnode.types.peers import Offer, StageOffer

OWN, THERE, FAR = PeerId("own"), PeerId("there"), PeerId("far")


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


@attrs.define
class Watch:
    """A monitor's world."""

    table: PeerTable
    evidence: Mailbox
    failures: Latest
    health: HealthBoard
    metrics: Metrics
    pulse: Pulse
    events: list = attrs.field(factory=list)

    @asynccontextmanager
    async def watching(self, *, expects_peers=False):
        broadcast = Broadcast("membership")
        resources = HealthResources(self.table, self.evidence, self.failures, broadcast, self.health, self.metrics)
        monitor = HealthMonitor(resources, self.pulse, expects_peers)
        async with trio.open_nursery() as nursery:
            with broadcast.subscribe(1000) as events:
                await nursery.start(monitor.run)
                nursery.start_soon(self._note, events)
                yield monitor
                nursery.cancel_scope.cancel()

    async def _note(self, events):
        async for event in events:
            self.events.append(event)

    async def accuse(self, peer, misdeed, times=1):
        for _ in range(times):
            await self.evidence.tell(Evidence(peer, misdeed, "seen"))
        await trio.sleep(1.1)

    def codes(self):
        return [condition.code for condition in self.health.conditions()]


@pytest.fixture
def watch():
    failures = Latest({})
    return Watch(PeerTable(OWN, failures), Mailbox("evidence", 64), failures, HealthBoard(), Metrics(), Pulse())


def offer(peer, sequence=1):
    return Offer(peer, sequence, 0.0, "1", ())


async def test_a_peer_joins_with_its_link_and_leaves_after_three_missed_heartbeats(watch, autojump_clock):
    """From the bytes that do not come to the event: link, table and monitor as they are in a node."""
    async with watch.watching(), one_link() as (link, _raw):
        watch.table.linked(link, lan=False)
        await trio.sleep(14)
        assert watch.events == [PeerJoined(THERE)]
        assert watch.metrics.network_peers._value.get() == 1
        await link.closed.wait()
        watch.table.unlinked(link)
        await trio.sleep(1.1)
        assert watch.events == [PeerJoined(THERE), PeerLeft(THERE)]
        assert watch.metrics.network_peers._value.get() == 0


async def test_a_peer_known_by_hearsay_is_there_and_gone_when_its_word_expires(watch, autojump_clock):
    async with watch.watching():
        watch.table.learn(FAR, ["/ip4/192.0.2.1/tcp/1"])
        await trio.sleep(2)
        assert watch.events == [], "an address is not a peer"
        watch.table.heard(offer(FAR))
        await trio.sleep(2)
        watch.table.forget_offer(FAR)
        await trio.sleep(2)
        watch.table.heard(offer(FAR, 2))
        await trio.sleep(2)
        assert watch.events == [PeerJoined(FAR), PeerLeft(FAR), PeerJoined(FAR)]


async def test_a_link_that_is_replaced_at_once_is_no_departure(watch, autojump_clock):
    old, new = (make_link(trio.testing.memory_stream_pair()[0]) for _ in range(2))
    async with watch.watching():
        watch.table.linked(old, lan=False)
        await trio.sleep(2)
        watch.table.linked(new, lan=False)
        watch.table.unlinked(old)
        await trio.sleep(5)
        assert watch.events == [PeerJoined(THERE)]


@pytest.mark.parametrize("misdeed", Misdeed)
async def test_evidence_is_counted_weighed_and_ends_in_a_ban(watch, autojump_clock, misdeed):
    async with watch.watching():
        watch.table.heard(offer(FAR))
        await trio.sleep(2)
        times = -(-20 // misdeed.weight)
        await watch.accuse(FAR, misdeed, times - 1)
        assert not watch.table.is_banned(FAR)
        assert [peer.peer for peer in watch.table.peers()] == [FAR]
        await watch.accuse(FAR, misdeed)
        assert watch.table.is_banned(FAR)
        assert watch.table.peers() == ()
        assert watch.metrics.network_misdeeds_total.labels(kind=misdeed.label)._value.get() == times
        await trio.sleep(2)
        assert watch.events[-1] == PeerLeft(FAR)


async def test_trust_comes_back_by_the_hour(watch, autojump_clock):
    async with watch.watching():
        await watch.accuse(FAR, Misdeed.FORGED, 4)
        assert watch.failures.value == {FAR: 40}
        await trio.sleep(3600)
        assert watch.failures.value[FAR] == 20
        await trio.sleep(3600)
        assert not watch.table.is_banned(FAR)
        await trio.sleep(10 * 3600)
        assert watch.failures.value == {}


async def test_what_was_known_outlives_a_crash_of_the_monitor(watch, autojump_clock):
    async with watch.watching():
        await watch.accuse(FAR, Misdeed.FORGED, 3)
    async with watch.watching():
        await trio.sleep(5)
        assert watch.table.is_banned(FAR)


async def test_accusations_against_thousands_of_strangers_do_not_fill_memory_nor_hide_the_worst(watch, autojump_clock):
    async with watch.watching() as monitor:
        await watch.accuse(FAR, Misdeed.FORGED, 3)
        for number in range(5000):
            await watch.evidence.tell(Evidence(PeerId(f"p{number}"), Misdeed.MALFORMED, "x" * 10_000))
        await trio.sleep(1)
        assert len(monitor._weights) <= 4096
        assert watch.table.is_banned(FAR)


async def test_being_alone_is_a_condition_for_who_expects_company(watch, autojump_clock):
    async with watch.watching(expects_peers=True):
        await trio.sleep(29)
        assert watch.codes() == []
        await trio.sleep(3)
        assert watch.codes() == ["no_peers"]
        watch.table.heard(offer(FAR))
        await trio.sleep(2)
        assert watch.codes() == []
        watch.table.forget_offer(FAR)
        await trio.sleep(20)
        assert watch.codes() == [], "alone for less than half a minute"
        await trio.sleep(15)
        assert watch.codes() == ["no_peers"]


async def test_being_alone_is_nothing_for_who_expects_nobody(watch, autojump_clock):
    async with watch.watching():
        await trio.sleep(300)
        assert watch.codes() == []
        assert watch.pulse.age() <= 1


async def test_evidence_that_came_too_fast_is_counted(watch, autojump_clock):
    async with watch.watching():
        for _ in range(100):
            with suppress(trio.WouldBlock):
                watch.evidence.tell_nowait(Evidence(THERE, Misdeed.MALFORMED, "seen"))
        await trio.sleep(2)
        count = watch.metrics.registry.get_sample_value
        dropped = count("meshnode_network_evidence_dropped_total")
        assert dropped > 0
        assert dropped + count("meshnode_network_misdeeds_total", {"kind": "malformed"}) == 100


async def test_a_name_that_means_other_weights_elsewhere_is_counted(watch, autojump_clock):
    def say(peer, model):
        stage = StageOffer(model, "wide", 2, 8, 64, BlockRange(0, 2), True, True, "cpu", 0.1, 0.1, 64)
        watch.table.heard(attrs.evolve(offer(peer, 2), stages=(stage,)))

    async with watch.watching():
        for model, disputed in (("a" * 64, 0), ("b" * 64, 1)):
            say("one", "a" * 64)
            say("other", model)
            await trio.sleep(1.1)
            assert watch.metrics.registry.get_sample_value("meshnode_network_disputed_names") == disputed
