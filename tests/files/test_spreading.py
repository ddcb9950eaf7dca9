"""A model from a hub that several nodes fetch together: each byte once, and whoever fails or lies costs a little time."""

from contextlib import asynccontextmanager

import attrs
import msgspec
import pytest
import trio
from support.hub_server import run_hub
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import InvalidModelFile, PeerUnreachable, RequestError, SourceUnavailable, Unavailable
from meshnode.files import spreading
from meshnode.files.acquisitions import AcquireModel, Terms
from meshnode.files.hub_client import Hub
from meshnode.files.hub_source import HubSource
from meshnode.files.importing import import_gguf
from meshnode.files.local_gguf import LocalGGUF
from meshnode.files.part_file import open_part
from meshnode.files.peer_copies import PREFIX
from meshnode.files.shard_file import hash_pieces
from meshnode.files.share_making import ShareMaker
from meshnode.files.shelf import CatalogShelf, Helping
from meshnode.flow.lanes import Lanes
from meshnode.store.memory import MemoryStore
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import CHUNK_BYTES
from meshnode.types.model_names import ModelNames

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(120),
    # httpx leaves its generators to the garbage collector when an answer breaks off, which Trio points out.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
REFERENCE = "hf:someone/wide-GGUF"
ROOM = 1 << 40


def write(path, feed_forward, **options):
    """Write a model of eight blocks, whose head shares its embedding."""
    return write_tiny_llama(
        path,
        name="Wide",
        quantization="Q8_0",
        blocks=8,
        hidden=512,
        heads=4,
        feed_forward=feed_forward,
        tied=True,
        **options,
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of some 10 MB."""
    return write(tmp_path_factory.mktemp("wide") / "wide-Q8_0.gguf", 128)


@pytest.fixture(scope="module")
def wide_id(wide, tmp_path_factory):
    return import_gguf(wide, tmp_path_factory.mktemp("shards")).id


@pytest.fixture
def hub(wide):
    with run_hub() as hub:
        hub.repositories["someone/wide-GGUF"] = {"wide-Q8_0.gguf": wide.read_bytes()}
        yield hub


@attrs.define(eq=False, slots=False)
class Helper:
    """A node that gives room; its `room` and `keep` are what an AutoShardManager would do."""

    node: object
    maker: ShareMaker
    given: int = ROOM
    kept: list = attrs.field(factory=list)
    making: trio.Event = attrs.field(factory=trio.Event)
    shelf: CatalogShelf = attrs.field(init=False)

    def __attrs_post_init__(self):
        self.shelf = CatalogShelf(self.node.catalog, Helping(attrs.evolve(self.maker, lent=True), self))

    def room(self):
        return self.given

    async def keep(self, model, blocks, block_count, made):
        self.kept.append((str(blocks), block_count))
        terms = Terms(frozenset(each.id for each in made), self.given)
        await self.node.mailbox.ask(AcquireModel(f"{PREFIX}{model}", blocks, unasked=True, terms=terms))

    async def make_share(self, share, report):
        self.making.set()
        return await self.shelf.make_share("asker", share, report)

    async def keep_share(self, model, blocks, block_count):
        await self.shelf.keep_share("asker", model, blocks, block_count)

    # As one who has shards

    async def manifest(self, model):
        await trio.lowlevel.checkpoint()
        return self.shelf.manifest(model)

    async def fetch(self, shard, first, count, take):
        with self.shelf.path(shard).open("rb") as file:
            for number in range(first, first + count):
                await trio.lowlevel.checkpoint()
                file.seek(number * CHUNK_BYTES)
                take(number, file.read(CHUNK_BYTES))


@attrs.define(eq=False, slots=False)
class Mesh:
    """Everybody's peers; what a node holds counts for all others at once."""

    members: dict = attrs.field(factory=dict)
    accused: list = attrs.field(factory=list)
    helping: tuple = ()

    def helpers(self):
        return {name: self.members[name].room() for name in self.helping}

    def models(self):
        return tuple(
            {
                each.id: ModelNames(each.id, each.name)
                for member in self.members.values()
                for each in member.node.catalog.manifests()
            }.values()
        )

    def of_repository(self, repository):
        manifests = [each for member in self.members.values() for each in member.node.catalog.manifests()]
        return frozenset(each.id for each in manifests if each.repository == repository)

    def holders(self, model, block, *, embedding=False, head=False):
        def has(member):
            held = member.node.catalog.held(model)
            entry = member.node.catalog.entry(model)
            return entry is not None and any(
                shard.id in held
                and (
                    shard.block == block if block is not None else shard.kind.value == ("head" if head else "embedding")
                )
                for shard in entry.manifest.shards
            )

        if block is None and not embedding and not head:
            return frozenset(name for name, member in self.members.items() if member.node.catalog.held(model))
        return frozenset(name for name, member in self.members.items() if has(member))

    @asynccontextmanager
    async def line(self, peer):
        await trio.lowlevel.checkpoint()
        if peer not in self.members:
            raise PeerUnreachable("it is gone")
        yield self.members[peer]

    def accuse(self, peer, what):
        self.accused.append(peer)


@attrs.define
class World:
    mesh: Mesh
    asker: object

    async def spread(self):
        return await self.asker.mailbox.ask(AcquireModel(REFERENCE, spread=True))

    def whole(self, manifest):
        """Every shard is verified somewhere, and what was fetched lies nowhere else."""
        held = frozenset().union(*(member.node.catalog.held(manifest.id) for member in self.mesh.members.values()))
        return held == {shard.id for shard in manifest.shards}


@pytest.fixture
async def world(data, hub, tmp_path):
    mesh = Mesh()
    source = {"endpoint": hub.endpoint, "token": hub.token, "stall": 30.0}
    folders = [attrs.evolve(data, root=tmp_path / name, store=MemoryStore(), peers=mesh) for name in "bcd"]
    data.peers = mesh
    async with trio.open_nursery() as nursery:

        async def run(folder, name, *, task_status):
            lanes = Lanes()
            folder.maker = ShareMaker(Hub(**source), lanes, folder.paths, pause=0.01)
            folder.sources = (HubSource(Hub(**source), lanes, folder.paths.transfers, pause=0.01), LocalGGUF())
            async with folder.running() as node:
                mesh.members[name] = Helper(node, folder.maker)
                task_status.started(node)
                await trio.sleep_forever()

        asker = await nursery.start(run, data, "a")
        for name, folder in zip("bcd", folders, strict=True):
            await nursery.start(run, folder, name)
        mesh.helping = ("b", "c", "d")
        yield World(mesh, asker)
        nursery.cancel_scope.cancel()


async def test_every_byte_comes_once_from_outside_and_the_model_is_the_same(world, hub, tmp_path):
    # 26 MB: what is fetched of the blocks at both sides of a cut is little.
    wide = write(tmp_path / "wide-Q8_0.gguf", 1536)
    wide_id = import_gguf(wide, tmp_path / "shards").id
    hub.repositories["someone/wide-GGUF"] = {wide.name: wide.read_bytes()}
    manifest = await world.spread()
    assert manifest.id == wide_id
    assert hub.sent_bytes <= 1.05 * wide.stat().st_size
    assert world.whole(manifest)
    kept = [world.mesh.members[name].kept for name in "bcd"]
    assert sorted(kept) == [[("2:4", 8)], [("4:6", 8)], [("6:8", 8)]]
    own = world.asker.catalog.held(manifest.id)
    assert {shard.block for shard in manifest.shards if shard.id in own} == {None, 0, 1}
    assert world.mesh.accused == []
    for member in world.mesh.members.values():
        assert not list(member.node.catalog.paths.transfers.iterdir())


async def test_what_was_interrupted_before_it_was_entrusted_is_finished(world, hub, wide, monkeypatch):
    async def stuck(*_):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            for name in "bcd":
                patch.setattr(world.mesh.members[name], "keep_share", stuck)
            nursery.start_soon(world.spread)
            with trio.fail_after(60):
                while not world.asker.catalog.manifests():  # noqa: ASYNC110  # nobody is told
                    await trio.sleep(0.02)
                await trio.sleep(0.2)
            nursery.cancel_scope.cancel()
    sent = hub.sent_bytes
    manifest = await world.spread()
    assert world.whole(manifest)
    assert hub.sent_bytes - sent < wide.stat().st_size / 10  # the header, and samples
    assert not list(world.asker.catalog.paths.transfers.iterdir())
    assert sorted(world.mesh.members[name].kept for name in "bcd") == [[("2:4", 8)], [("4:6", 8)], [("6:8", 8)]]


async def test_what_nobody_holds_of_a_known_model_is_divided_and_the_rest_left(world, hub, wide, wide_id):
    await world.asker.mailbox.ask(AcquireModel(REFERENCE, BlockRange(3, 8)))
    sent = hub.sent_bytes
    assert (await world.spread()).id == wide_id
    manifest = world.asker.catalog.entry(wide_id).manifest
    assert world.whole(manifest)
    assert sum(len(world.mesh.members[name].kept) for name in "bcd") == 1
    assert hub.sent_bytes - sent < 0.8 * wide.stat().st_size
    sent = hub.sent_bytes
    assert await world.spread() == manifest
    assert hub.sent_bytes == sent


async def test_of_a_model_that_members_know_what_nobody_holds_is_divided_and_no_lie_of_it_is_believed(
    world, data, hub, wide, wide_id, tmp_path
):
    other = tmp_path / "wide-Q8_0.gguf"
    altered = bytearray(wide.read_bytes())
    altered[-5000] ^= 1
    other.write_bytes(altered)
    await world.mesh.members["c"].node.mailbox.ask(AcquireModel(REFERENCE, BlockRange(0, 5)))
    assert await lie_of(world, data, hub, other, BlockRange(0, 7)) < wide_id, "it is looked at first"
    sent = hub.sent_bytes
    assert (await world.spread()).id == wide_id
    manifest = world.asker.catalog.entry(wide_id).manifest
    assert world.whole(manifest)
    assert {shard.block for shard in manifest.shards if world.asker.catalog.is_held(shard.id)} == {None, 0, 1}
    assert hub.sent_bytes - sent < 0.8 * wide.stat().st_size  # of eight blocks the last, and then the last three
    assert world.asker.catalog.entry(wide_id).sampled
    assert len(world.asker.catalog.manifests()) == 1
    assert world.mesh.accused == [], "the helper that made the last block is honest"
    assert not list(world.asker.catalog.paths.transfers.iterdir())


async def test_who_adds_what_members_have_has_it_from_them(world, hub, wide, wide_id, monkeypatch):
    world.mesh.helping = ("b", "c")
    await world.spread()
    sent, stranger, helper = hub.sent_bytes, world.mesh.members["d"].node, world.mesh.members["b"].node
    assert (await stranger.mailbox.ask(AcquireModel(REFERENCE, spread=True))).id == wide_id
    assert all(len(world.mesh.members[name].kept) == 1 for name in "bc"), "there was nothing to divide"
    monkeypatch.delattr("meshnode.files.hub_copies.prove")  # samples are for who has not all of it
    assert (await helper.mailbox.ask(AcquireModel(REFERENCE))).id == wide_id
    assert [node.catalog.entry(wide_id).sampled for node in (stranger, helper)] == [True, False]
    for node in (stranger, helper):
        assert node.catalog.entry(wide_id).origins[0].reference == REFERENCE
    assert helper.catalog.held(wide_id) == {shard.id for shard in helper.catalog.entry(wide_id).manifest.shards}
    assert {
        each.block for each in helper.catalog.entry(wide_id).manifest.shards if stranger.catalog.is_held(each.id)
    } == {
        None,
        0,
        1,
    }
    assert hub.sent_bytes - sent < wide.stat().st_size / 5  # headers and samples, twice
    sent, damaged = hub.sent_bytes, helper.catalog.entry(wide_id).manifest.shards[2]
    helper.catalog.path(damaged.id).unlink()
    helper.catalog.forget_held([damaged.id])
    await helper.manager._check(wide_id)  # as at the start
    assert helper.catalog.is_held(damaged.id)
    assert hub.sent_bytes == sent, "members are asked first"
    fetch = AcquireModel(f"{PREFIX}{wide_id}", unasked=True)  # of the node's own accord
    await stranger.mailbox.ask(fetch)
    assert stranger.catalog.entry(wide_id).sampled, "whether a hub may be asked is for the settings to say"
    await stranger.mailbox.ask(attrs.evolve(fetch, may_prove=True))
    assert not stranger.catalog.entry(wide_id).sampled
    assert not list(stranger.catalog.paths.transfers.iterdir())


async def test_what_placement_fetches_at_the_same_time_is_not_taken_from_under_who_adds_it(
    world, hub, wide, wide_id, monkeypatch
):
    await world.asker.mailbox.ask(AcquireModel(REFERENCE))
    sent, node = hub.sent_bytes, world.mesh.members["b"].node
    fetch, go = Helper.fetch, trio.Event()

    async def held_up(*arguments):
        await go.wait()
        await fetch(*arguments)

    monkeypatch.setattr(Helper, "fetch", held_up)
    async with trio.open_nursery() as nursery:
        for reference in (REFERENCE, f"{PREFIX}{wide_id}"):
            nursery.start_soon(node.mailbox.ask, AcquireModel(reference))
        with trio.fail_after(10):
            while hub.sent_bytes == sent:  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.02)
        await trio.sleep(0.3)  # until both want the weights
        go.set()
    assert len(node.catalog.held(wide_id)) == len({shard.id for shard in node.catalog.entry(wide_id).manifest.shards})
    assert hub.sent_bytes - sent < wide.stat().st_size / 10
    assert not list(node.catalog.paths.transfers.iterdir())


async def test_what_no_member_has_comes_from_the_hub(world, hub, wide, wide_id):
    await world.asker.mailbox.ask(AcquireModel(REFERENCE, BlockRange(0, 5)))
    sent, node = hub.sent_bytes, world.mesh.members["b"].node
    assert (await node.mailbox.ask(AcquireModel(REFERENCE))).id == wide_id
    assert len(node.catalog.held(wide_id)) == len({shard.id for shard in node.catalog.entry(wide_id).manifest.shards})
    assert hub.sent_bytes - sent < 0.6 * wide.stat().st_size


async def test_what_has_come_from_the_hub_is_not_fetched_from_members_nor_the_other_way_round(
    world, hub, wide, wide_id, monkeypatch
):
    node, other, given = world.mesh.members["b"].node, world.mesh.members["c"].node, []
    fetch = Helper.fetch

    async def counted(self, shard, first, count, take):
        given.extend((shard, number) for number in range(first, first + count))
        await fetch(self, shard, first, count, take)

    monkeypatch.setattr(Helper, "fetch", counted)
    hub.faults = ["", "cut", "", "cut", "404"]
    with pytest.raises(SourceUnavailable):
        await node.mailbox.ask(AcquireModel(REFERENCE))
    hub.faults = []
    await world.asker.mailbox.ask(AcquireModel(REFERENCE))
    sent = hub.sent_bytes
    manifest = await node.mailbox.ask(AcquireModel(REFERENCE))
    assert manifest.id == wide_id
    assert hub.sent_bytes - sent < wide.stat().st_size / 20
    chunks = {(shard.id, number) for shard in manifest.shards for number in range(len(shard.chunks))}
    assert len(given) < len(chunks)

    await other.mailbox.ask(AcquireModel(REFERENCE, BlockRange(0, 1)))
    block = next(shard for shard in manifest.shards if shard.block == 5)
    part = open_part(other.catalog.paths.transfers, block)
    part.write(0, node.catalog.path(block.id).read_bytes()[:CHUNK_BYTES])
    part.close()
    monkeypatch.setattr("meshnode.files.hub_copies.holders_of", lambda *_: frozenset())  # they have all gone
    sent = hub.sent_bytes
    await other.mailbox.ask(AcquireModel(REFERENCE, BlockRange(5, 6)))
    assert other.catalog.is_held(block.id)
    assert hub.sent_bytes - sent < block.nbytes  # whole blocks of the file, which neighbours share


async def lie_of(world, data, hub, path, blocks=None):
    """Have a member say that it has what the hub has, and return the id of what it has instead."""
    liar, origin = world.mesh.members["b"].node, await data.sources[0].look(REFERENCE)
    lie = await liar.mailbox.ask(AcquireModel(str(path), blocks))
    source = f"someone/wide-GGUF@{hub.commit('someone/wide-GGUF')[:12]}/x"
    claimed = attrs.evolve(lie, source=source, source_version=origin.version)
    await liar.catalog.put(attrs.evolve(liar.catalog.entry(lie.id), manifest=claimed))
    return lie.id


@pytest.mark.parametrize(
    ("blocks", "given"),
    [(None, None), (None, BlockRange(1, 8)), (BlockRange(0, 2), None)],
    ids=["one byte is wrong", "one byte is, and a block is kept back", "all are, of which a part is wanted"],
)
async def test_what_is_not_the_hubs_is_not_taken_for_it(world, data, hub, wide, wide_id, tmp_path, blocks, given):
    other = tmp_path / "wide-Q8_0.gguf"
    if blocks is None:
        altered = bytearray(wide.read_bytes())
        altered[-5000] ^= 1
        other.write_bytes(altered)
    else:
        write(other, 128, seed=9)
    assert await lie_of(world, data, hub, other, given) != wide_id
    assert (await world.asker.mailbox.ask(AcquireModel(REFERENCE, blocks))).id == wide_id
    assert [manifest.id for manifest in world.asker.catalog.manifests()] == [wide_id]


async def test_what_samples_have_not_shown_comes_out_when_all_of_it_is_here(
    world, data, hub, wide, wide_id, tmp_path, monkeypatch
):
    other = tmp_path / "wide-Q8_0.gguf"
    altered = bytearray(wide.read_bytes())
    altered[-5000] ^= 1
    other.write_bytes(altered)
    asker, lie = world.asker, await lie_of(world, data, hub, other)

    async def sees_nothing(*_):
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr("meshnode.files.hub_copies.prove", sees_nothing)
    assert (await asker.mailbox.ask(AcquireModel(REFERENCE, BlockRange(0, 2)))).id == lie
    await asker.mailbox.ask(AcquireModel(f"{PREFIX}{lie}", BlockRange(2, 4)))
    assert asker.catalog.entry(lie).sampled
    with pytest.raises(InvalidModelFile, match=r"wide-Q8_0\.gguf is another one there"):
        await asker.mailbox.ask(AcquireModel(f"{PREFIX}{lie}"))
    left = asker.catalog.entry(lie)
    assert [each.reference for each in left.origins] == [f"{PREFIX}{lie}"]
    assert (left.sampled, left.manifest.source_version) == (False, None)
    assert (await asker.mailbox.ask(AcquireModel(REFERENCE))).id == wide_id


async def test_without_anybody_who_gives_room_it_is_said_what_to_do(world):
    world.mesh.helping = ()
    with pytest.raises(RequestError, match=r"set resources\.disk_bytes on those that should"):
        await world.spread()


async def test_only_what_comes_from_a_hub_is_divided(world, wide):
    with pytest.raises(RequestError, match="divides what comes from a hub"):
        await world.asker.mailbox.ask(AcquireModel(str(wide), spread=True))


async def fails(_share, _report):
    await trio.lowlevel.checkpoint()
    raise PeerUnreachable("its cable was pulled")


async def test_who_fails_is_done_without(world, wide_id, monkeypatch):
    monkeypatch.setattr(world.mesh.members["c"], "make_share", fails)
    monkeypatch.setattr(world.mesh.members["d"], "given", 1000)  # it gives less than it says, or has given it meanwhile
    monkeypatch.setattr(world.mesh, "helpers", lambda: dict.fromkeys("bcd", ROOM))
    manifest = await world.spread()
    assert manifest.id == wide_id
    assert world.whole(manifest)
    assert world.mesh.accused == []


async def test_who_does_not_keep_its_share_is_done_without(world, wide_id, monkeypatch):
    async def refuse(*_):
        await trio.lowlevel.checkpoint()
        raise Unavailable("the disk is full")

    monkeypatch.setattr(world.mesh.members["c"], "keep_share", refuse)
    manifest = await world.spread()
    assert manifest.id == wide_id
    assert world.whole(manifest)


@pytest.mark.parametrize("lie", ["bytes", "hashes", "garbage"])
async def test_a_liar_is_named_and_its_share_made_here(world, wide_id, monkeypatch, lie):
    helper = world.mesh.members["c"]
    honest = helper.make_share

    async def lying(share, report):
        made = msgspec.msgpack.decode(await honest(share, report))
        match lie:
            case "bytes":
                for each in made:
                    path = helper.shelf.path(each["id"])
                    path.write_bytes(bytes(path.stat().st_size))
                    each |= msgspec.to_builtins(hash_pieces([path.read_bytes()]))
                    helper.shelf.helping.made[each["id"]] = path
            case "hashes":
                for each in made:
                    each["chunks"] = ["0" * 64] * len(each["chunks"])
            case "garbage":
                return b"\xc1"
        return msgspec.msgpack.encode(made)

    monkeypatch.setattr(helper, "make_share", lying)
    manifest = await world.spread()
    assert manifest.id == wide_id
    assert world.whole(manifest)
    assert world.mesh.accused == ["c"]
    assert helper.kept == []


async def test_one_who_gets_nowhere_is_given_up(world, wide_id, monkeypatch):
    async def stuck(_share, report):
        while True:
            await trio.sleep(0.05)
            report(5, 100)

    monkeypatch.setattr(spreading, "_STALL", 1.0)
    monkeypatch.setattr(world.mesh.members["b"], "make_share", stuck)
    manifest = await world.spread()
    assert manifest.id == wide_id
    assert world.whole(manifest)
    assert world.mesh.accused == [], "slow is not wrong"


async def test_what_was_made_before_an_interruption_is_not_fetched_again(world, hub, wide, monkeypatch):
    done, slow = [], world.mesh.members["d"]
    for name in "bc":
        honest = world.mesh.members[name].make_share

        async def noted(share, report, honest=honest):
            made = await honest(share, report)
            done.append(made)
            return made

        monkeypatch.setattr(world.mesh.members[name], "make_share", noted)
    transfers = world.asker.catalog.paths.transfers

    async def stuck(_share, _report):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(slow, "make_share", stuck)
            nursery.start_soon(world.spread)
            with trio.fail_after(60):
                while len(done) < 2 or len(list(transfers.glob("*.part"))) < 4:  # noqa: ASYNC110  # nobody is told
                    await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    manifest = await world.spread()
    assert world.whole(manifest)
    assert (
        hub.sent_bytes <= 1.35 * wide.stat().st_size
    )  # blocks at both sides of a cut are a good part of so small a model


async def test_cancelling_ends_the_work_of_all(world, hub):
    hub.faults.extend(["", *["stall"] * 50])  # the header comes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.spread)
        with trio.fail_after(20):
            for name in "bcd":
                await world.mesh.members[name].making.wait()
        nursery.cancel_scope.cancel()
    hub.faults.clear()
    for member in world.mesh.members.values():
        with trio.fail_after(10):
            while member.shelf.helping._is_busy:  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.02)
        assert list(member.node.catalog.paths.partial.glob("*")) == []
        assert member.node.catalog.manifests() == ()


async def test_a_hub_that_is_not_there_is_one_sentence(world, hub):
    hub.lookup_faults.extend([404] * 20)
    with pytest.raises(SourceUnavailable, match="has no someone/wide-GGUF"):
        await world.spread()
