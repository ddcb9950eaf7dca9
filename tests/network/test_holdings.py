"""What a node says of its disk, when it has more models than it tells of."""

import attrs
import pytest
import trio
import trio.testing
from support.memory_hosts import identity_of, open_internet

from meshnode.errors import PeerUnreachable
from meshnode.flow.latest import Latest
from meshnode.network.holdings import described, keeps, told
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ModelConfig, ModelManifest, RopeStyle, ShardDescriptor, ShardKind
from meshnode.types.peers import Room

CONFIG = ModelConfig("llama", 1, 8, 8, 1, 1, 8, 16, 64, 1e-5, 1e4, 8, RopeStyle.HALVES)


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


@attrs.frozen(eq=False)
class Shelf:
    models: tuple
    ids: frozenset | None = None  # None: one block of each
    revision: Latest = attrs.field(factory=lambda: Latest(0))

    def manifests(self):
        return self.models

    def aliases(self, _model):
        return ()

    def held(self, model):
        return frozenset({f"block of {model}"}) if self.ids is None else self.ids


def shelf(count):
    names = [f"m{number:03}" for number in range(count)]
    blocks = {name: ShardDescriptor(f"block of {name}", ShardKind.BLOCK, 0, 10, (), ()) for name in names}
    return Shelf(tuple(ModelManifest(name, name, CONFIG, (blocks[name],), "F32") for name in names))


def test_a_node_knows_all_of_its_models_and_gives_no_room_that_those_take_which_it_does_not_tell():
    assert len(described(shelf(70))) == 70
    holdings, room = told(shelf(70), Room(budget=1000, uptime=5.0), shares=True)
    assert [holding.model for holding in holdings] == [f"m{number:03}" for number in range(64)]
    assert room == Room(budget=940, uptime=5.0)
    assert told(shelf(70), Room(budget=30), shares=True)[1] == Room()


def test_who_tells_all_tells_its_room_as_it_is():
    assert told(shelf(3), Room(budget=1000), shares=True) == (described(shelf(3)), Room(budget=1000))
    assert told(shelf(3), None, shares=True)[1] is None
    assert told(None, Room(budget=9), shares=True) == ((), Room(budget=9))


@pytest.mark.parametrize(
    ("blocks", "kept"),
    [((0, 2), True), ((1, 4), True), ((1, 2), True), ((0, 4), True), ((0, 5), False), ((4, 6), False)],
)
def test_what_is_kept_is_kept_with_the_end_at_it(blocks, kept):
    kinds = [ShardDescriptor("e", ShardKind.EMBEDDING, None, 1, (), ()), *blocks_of(5)]
    shelf = Shelf((ModelManifest("m", "m", attrs.evolve(CONFIG, block_count=5), tuple(kinds), "F32"),))
    assert keeps(attrs.evolve(shelf, ids=frozenset(each.id for each in kinds)), "m", BlockRange(*blocks)) is kept


def blocks_of(count):
    return [ShardDescriptor(f"b{block}", ShardKind.BLOCK, block, 1, (), ()) for block in range(count)]


def block_model():
    """The first three of four blocks of a model."""
    model = "5e" * 32
    shards = (ShardDescriptor("e", ShardKind.EMBEDDING, None, 1, (), ()), *blocks_of(3))
    manifest = ModelManifest(model, "m", attrs.evolve(CONFIG, block_count=4), shards, "F32")
    return model, Shelf((manifest,), frozenset(each.id for each in shards))


async def test_who_shares_nothing_tells_of_no_files_nor_room_and_vouches_for_none(autojump_clock):
    model, held = block_model()
    room = Room(1000, 5.0, ((model, BlockRange(0, 1)),), ((model, 2.0),), (model,), 10)
    async with open_internet() as net:
        silent = await net.start(1, holdings=held, shares=False)
        other = await net.start(2, bootstrap=(1,))
        silent.resources.room.set(room)
        await trio.sleep(100)
        offer = other.row(silent.own).offer
        assert (offer.holdings, offer.room_bytes) == ((), 0)
        assert offer.room == Room(0, 5.0, (), room.demand, room.pinned), (
            "what its callers ask for is wanted all the same"
        )
        assert not await other.resources.gateway.keeps(silent.own, model, BlockRange(0, 3))
        assert net.provided == []
    assert silent.resources.room.value == room, "its own placement goes by it"


async def test_peers_say_what_they_keep_and_not_what_they_are_about_to_let_go(autojump_clock):
    model, held = block_model()
    async with open_internet() as net:
        holder = await net.start(1, holdings=held)
        asker = await net.start(2, bootstrap=(1,))
        await trio.sleep(30)
        gateway = asker.resources.gateway
        assert await gateway.keeps(holder.own, model, BlockRange(0, 3))
        assert not await gateway.keeps(holder.own, model, BlockRange(2, 4))
        assert not await holder.resources.gateway.keeps(asker.own, model, BlockRange(0, 3))
        holder.resources.leaving.set((model, BlockRange(2, 4)))
        assert await gateway.keeps(holder.own, model, BlockRange(0, 2))
        assert not await gateway.keeps(holder.own, model, BlockRange(0, 3))
        with pytest.raises(PeerUnreachable):
            await gateway.keeps(identity_of(3).peer, model, BlockRange(0, 3))
    with pytest.raises(PeerUnreachable, match="down"):
        await gateway.keeps(holder.own, model, BlockRange(0, 3))
