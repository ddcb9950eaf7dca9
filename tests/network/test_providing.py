"""Provider records, on virtual time: what is held is announced, what is missing is looked for and its holders are dialled."""

import itertools

import attrs
import pytest
import trio
import trio.testing
from support.memory_hosts import identity_of, open_internet

from meshnode.flow.latest import Latest
from meshnode.network import providing
from meshnode.network.host import HostSettings, open_host
from meshnode.network.peers import PeerTable
from meshnode.network.providing import Providing
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ModelConfig, ModelManifest, RopeStyle, ShardDescriptor, ShardKind
from meshnode.types.peers import Offering, StageOffer


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


def shard(kind, block=None):
    return ShardDescriptor(f"{kind.value}-{block}", kind, block, 1, (), ())


SHARDS = (
    shard(ShardKind.TOKENIZER),
    shard(ShardKind.EMBEDDING),
    *(shard(ShardKind.BLOCK, block) for block in range(4)),
    shard(ShardKind.HEAD),
)
CONFIG = ModelConfig("llama", 4, 8, 8, 1, 1, 8, 16, 64, 1e-5, 1e4, 8, RopeStyle.HALVES)
MODEL = ModelManifest("model", "a model", CONFIG, SHARDS, "F32")


@attrs.define(eq=False)
class Shelf:
    ids: frozenset
    revision: Latest = attrs.field(factory=lambda: Latest(0))

    def manifests(self):
        return (MODEL,)

    def aliases(self, model):
        return ()

    def held(self, model):
        assert model == MODEL.id
        return self.ids

    def put(self, *ids):
        self.ids = frozenset(ids)
        self.revision.set(self.revision.value + 1)


def shelf(*blocks):
    return Shelf(frozenset(f"block-{block}" for block in blocks))


def offering(start, end):
    stage = StageOffer(
        MODEL.id, MODEL.name, 4, 8, 64, BlockRange(start, end), start == 0, end == 4, "f32", 1e-3, 1e-3, 64
    )
    return Offering((stage,))


async def test_what_is_held_is_announced_once_somebody_is_there_and_in_no_hurry(autojump_clock):
    async with open_internet() as net:
        holder = await net.start(1, holdings=shelf(0, 1, 2))
        await trio.sleep(100)
        assert net.provided == []
        await net.start(2, bootstrap=(1,))
        await trio.sleep(100)
        assert [(peer, key) for _, peer, key in net.provided] == [
            (holder.own, b"block-0"),
            (holder.own, b"block-1"),
            (holder.own, b"block-2"),
        ]
        times = [time for time, _, _ in net.provided]
        assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(times))


async def test_records_follow_what_is_held(autojump_clock):
    async with open_internet() as net:
        held = shelf(0, 1)
        await net.start(1, holdings=held)
        await net.start(2, bootstrap=(1,))
        await trio.sleep(100)
        held.put("block-1", "block-2")
        await trio.sleep(100)
        assert {key for key, providers in net.records.items() if providers} == {b"block-1", b"block-2"}
        assert len(net.provided) == 3


async def test_a_node_with_more_shards_than_the_table_takes_announces_what_fits(autojump_clock, monkeypatch):
    monkeypatch.setattr(providing, "MAX_KEYS", 2)
    async with open_internet() as net:
        await net.start(1, holdings=shelf(0, 1, 2, 3))
        await net.start(2, bootstrap=(1,))
        await trio.sleep(100)
        assert len(net.provided) == 2


async def test_the_holder_of_a_missing_shard_is_found_and_linked(autojump_clock):
    async with open_internet() as net:
        await net.start(1)
        stranger = await net.start(2, holdings=shelf(2, 3))
        for key in (b"block-2", b"block-3"):
            net.records.setdefault(key, {})[stranger.own] = net.hosts[stranger.own].addresses
        stranger.resources.offering.set(offering(2, 4))
        asker = await net.start(3, bootstrap=(1,), holdings=Shelf(frozenset({"embedding-None", "block-0", "block-1"})))
        assert asker.row(stranger.own) is None
        await trio.sleep(20)
        assert asker.row(stranger.own).connected
        assert asker.row(stranger.own).offer.stages[0].blocks == BlockRange(2, 4)
        asked = [key for _, peer, key in net.sought if peer == asker.own]
        assert asked == [b"block-2"]  # one of the gap; then it is offered


async def test_nothing_is_looked_for_that_a_peer_offers_or_this_node_holds(autojump_clock):
    async with open_internet() as net:
        await net.start(1, holdings=Shelf(frozenset(shard.id for shard in SHARDS)))
        other = await net.start(2, bootstrap=(1,), holdings=Shelf(frozenset({"embedding-None", "block-0"})))
        net.members[1].resources.offering.set(offering(1, 4))
        await trio.sleep(1000)
        assert [peer for _, peer, _ in net.sought] == []
        assert other.row(identity_of(1).peer).offer is not None


async def test_what_is_not_found_is_asked_for_less_and_less_often(autojump_clock):
    async with open_internet() as net:
        await net.start(1)
        await net.start(2, bootstrap=(1,), holdings=shelf(0))
        await trio.sleep(3600)
        times = [time for time, _, key in net.sought if key == b"block-1"]
        assert 5 <= len(times) <= 20
        assert times[-1] - times[-2] > 10 * (times[1] - times[0])


@pytest.mark.processes
async def test_a_holder_that_nobody_has_named_is_found_through_the_real_table(monkeypatch):
    monkeypatch.setattr(providing, "_LOOK_EVERY", 0.05)
    monkeypatch.setattr(providing, "_PACE", 0.01)
    settings = HostSettings(host="127.0.0.1", network_id="found")
    with trio.fail_after(60):
        async with (
            open_host(identity_of(1), settings, {}) as middle,
            open_host(identity_of(2), settings, {}) as holder,
            open_host(identity_of(3), settings, {}) as asker,
            trio.open_nursery() as nursery,
        ):
            for one in (holder, asker):
                await one.connect(middle.listen_addresses())
                one.vouch(middle.peer)  # as a valid Hello would
            table, sought = PeerTable(asker.peer, Latest({})), set()
            everything = Shelf(frozenset(each.id for each in SHARDS))
            nursery.start_soon(Providing(holder, everything, PeerTable(holder.peer, Latest({})), set()).announce)
            nursery.start_soon(Providing(asker, shelf(0), table, sought).look)
            await table.changed.changed(0)
            (info,) = table.peers()
            assert info.peer == holder.peer
            assert info.addresses == holder.listen_addresses()
            assert not info.connected  # that is the NetworkManager's part
            nursery.cancel_scope.cancel()
