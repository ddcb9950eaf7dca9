"""Models from peers: what comes is what the manifest says, whoever lies, stops or dies on the way, and no byte comes twice."""

import os
import threading
from contextlib import asynccontextmanager

import attrs
import msgspec
import pytest
import trio
import trio.testing
from blake3 import blake3
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import (
    FileError,
    InvalidModelFile,
    PeerUnreachable,
    RequestError,
    SourceUnavailable,
    Unavailable,
    UnknownModel,
)
from meshnode.files import part_file, verification
from meshnode.files.acquisitions import AcquireModel, DropBlocks, ExportModel, RemoveModel, Terms
from meshnode.files.foreign_manifests import decode_manifest, encode_manifest
from meshnode.files.jobs import ModelJobs, Part
from meshnode.files.manifests import manifest_id
from meshnode.files.part_file import begun, forget_parts, open_part
from meshnode.files.progress import ProgressBoard
from meshnode.files.shard_file import shard_file_name
from meshnode.files.shelf import CatalogShelf
from meshnode.files.sources import Origin
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.store.memory import MemoryStore
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import CHUNK_BYTES, ShardDescriptor, ShardKind
from meshnode.types.model_names import ModelNames

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch):
    monkeypatch.setattr("meshnode.files.transfer._PAUSE", 0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Blocks of several chunks each."""
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_llama(
        folder / "m.gguf", name="Wide", blocks=3, hidden=512, heads=4, feed_forward=3072, quantization="Q8_0"
    )


def nothing():
    """What a peer does wrong that does nothing wrong."""


@attrs.define(eq=False)
class Giver:
    """A peer: what it has, and what it does wrong."""

    catalog: object
    blocks: range = range(3)
    ends: bool = True
    alter: object = staticmethod(lambda number, data: data)
    before: object = nothing  # called before every chunk; what it raises ends the line
    after: object = nothing  # likewise, after every chunk; what it returns is awaited
    lines: int = 0
    given: list = attrs.field(factory=list)

    async def manifest(self, model):
        await trio.lowlevel.checkpoint()
        return CatalogShelf(self.catalog).manifest(model)

    async def fetch(self, shard, first, count, take):
        path = CatalogShelf(self.catalog).path(shard)
        for number in range(first, first + count):
            await trio.lowlevel.checkpoint()
            self.before()
            with path.open("rb") as file:
                file.seek(number * CHUNK_BYTES)
                data = file.read(CHUNK_BYTES)
            take(number, self.alter(number, data))
            self.given.append((shard, number))
            outcome = self.after()
            if outcome is not None:
                await outcome


@attrs.define(eq=False)
class Peers:
    givers: dict = attrs.field(factory=dict)
    accused: list = attrs.field(factory=list)

    def models(self):
        return tuple(
            {
                each.id: ModelNames(each.id, each.name, ("wide",))
                for giver in self.givers.values()
                for each in giver.catalog.manifests()
            }.values()
        )

    def holders(self, model, block, *, embedding=False, head=False):
        def has(giver):
            return giver.ends if embedding or head else block is None or block in giver.blocks

        return frozenset(peer for peer, giver in self.givers.items() if has(giver))

    @asynccontextmanager
    async def line(self, peer):
        await trio.lowlevel.checkpoint()
        giver = self.givers.get(peer)
        if giver is None:
            raise PeerUnreachable("it is gone")
        giver.lines += 1
        yield giver

    def accuse(self, peer, what):
        self.accused.append(peer)


@attrs.define
class World:
    """A node that has the model, and one that wants it."""

    manifest: object
    giver: object
    taker: object
    peers: Peers

    def add(self, name, **options):
        self.peers.givers[name] = Giver(self.giver.catalog, **options)
        return self.peers.givers[name]

    def chunks(self, blocks=range(3)):
        return {
            (shard.id, number)
            for shard in self.manifest.shards
            for number in range(len(shard.chunks))
            if shard.block is None or shard.block in blocks
        }

    def given(self):
        return [each for giver in self.peers.givers.values() for each in giver.given]


@pytest.fixture
async def world(data, model, tmp_path):
    peers = Peers()
    elsewhere = attrs.evolve(data, root=tmp_path / "giver", store=MemoryStore())
    async with elsewhere.running() as giver:
        manifest = await giver.mailbox.ask(AcquireModel(str(model)))
        data.peers = peers
        async with data.running() as taker:
            yield World(manifest, giver, taker, peers)


def is_whole(world, node=None):
    node = node or world.taker
    return node.catalog.held(world.manifest.id) == {shard.id for shard in world.manifest.shards}


@pytest.mark.parametrize("reference", ["mesh:wide", "wide", "mesh:"])
async def test_a_model_that_peers_have_is_had_by_its_name(world, data, reference):
    world.add("a"), world.add("b")
    reference += world.manifest.id if reference.endswith(":") else ""
    assert await world.taker.mailbox.ask(AcquireModel(reference)) == world.manifest
    assert is_whole(world)
    assert sorted(world.given()) == sorted(world.chunks())
    assert all(giver.given for giver in world.peers.givers.values())
    assert data.files("transfers") == data.files("partial") == []
    assert world.taker.progress.value[0].phase == "done"


async def test_a_part_comes_alone_and_the_rest_later(world):
    giver = world.add("a")
    await world.taker.mailbox.ask(AcquireModel("wide", BlockRange(0, 1)))
    places = {
        (shard.kind, shard.block)
        for shard in world.manifest.shards
        if shard.id in world.taker.catalog.held(world.manifest.id)
    }
    assert places == {(ShardKind.TOKENIZER, None), (ShardKind.EMBEDDING, None), (ShardKind.BLOCK, 0)}
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert is_whole(world)
    assert sorted(giver.given) == sorted(world.chunks())
    with pytest.raises(RequestError, match="0:3"):
        await world.taker.mailbox.ask(AcquireModel("wide", BlockRange(2, 4)))


async def test_what_came_unasked_is_let_go_until_a_person_asks_for_it(world, data):
    world.add("a")
    model = world.manifest.id
    await world.taker.mailbox.ask(AcquireModel(f"mesh:{model}", unasked=True))
    await world.taker.mailbox.ask(DropBlocks(model, BlockRange(2, 3)))
    assert world.taker.catalog.asked() == frozenset()
    await world.taker.mailbox.ask(AcquireModel("wide", BlockRange(0, 1)))  # nothing to fetch
    await world.taker.mailbox.ask(AcquireModel(f"mesh:{model}", unasked=True))
    async with data.running() as again:
        assert again.catalog.asked() == {model}
        with pytest.raises(RequestError, match="a person has asked for wide here"):
            await again.mailbox.ask(DropBlocks(model, BlockRange(2, 3)))


async def test_nothing_is_let_go_of_a_model_that_is_being_fetched(world):
    """Who vouched for the other copies did so a moment ago, and may not hours later."""
    fetch = AcquireModel(f"mesh:{world.manifest.id}", BlockRange(0, 1), unasked=True)
    world.add("a")
    await world.taker.mailbox.ask(fetch)
    reached, held = trio.Event(), world.taker.catalog.held(world.manifest.id)

    async def stay():
        reached.set()
        await trio.sleep_forever()

    world.peers.givers.clear()
    world.add("b", after=stay)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.taker.mailbox.ask, attrs.evolve(fetch, blocks=BlockRange(1, 3)))
        await reached.wait()
        with trio.fail_after(10), pytest.raises(Unavailable, match="being worked on"):
            await world.taker.mailbox.ask(DropBlocks(world.manifest.id, BlockRange(0, 1)))
        nursery.cancel_scope.cancel()
    assert held <= world.taker.catalog.held(world.manifest.id)


async def test_what_one_has_is_not_asked_of_another(world):
    a, b = world.add("a", blocks=range(2), ends=False), world.add("b", blocks=range(2, 3))
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert is_whole(world)
    where = {shard.id: shard for shard in world.manifest.shards}
    assert all(where[shard].block in (0, 1, None) for shard, _ in a.given)
    assert all(where[shard].block in (2, None) for shard, _ in b.given)


@pytest.mark.parametrize(
    "alter",
    [
        lambda _, data: bytes(len(data)),
        lambda _, data: data[:-1],
        lambda _, data: data + b"x",
        lambda n, data: data if n < 2 else data[::-1],
    ],
    ids=["zeros", "too short", "too long", "from the third on"],
)
async def test_a_liar_is_named_and_left_out(world, autojump_clock, alter):
    liar, honest = world.add("a", alter=alter), world.add("b")
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert is_whole(world)
    assert set(world.peers.accused) == {"a"}
    assert liar.lines <= 2  # one for the manifest
    assert honest.given


async def test_with_liars_alone_nothing_is_kept_but_what_is_right(world, data, autojump_clock):
    world.add("a", alter=lambda n, data: data if n == 0 else bytes(len(data)))
    with pytest.raises(SourceUnavailable, match="other bytes than the manifest says"):
        await world.taker.mailbox.ask(AcquireModel("wide"))
    assert world.taker.catalog.manifests() == ()
    honest = world.add("b")
    del world.peers.givers["a"]
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert is_whole(world)
    assert len(honest.given) < len(world.chunks())


def gone():
    raise PeerUnreachable("hung up")


async def test_one_that_stops_after_every_chunk_gets_there_and_one_that_brings_nothing_is_given_up(
    world, autojump_clock
):
    stopper, empty = world.add("a", after=gone), world.add("b", before=gone)
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert is_whole(world)
    assert stopper.lines > 3
    assert empty.lines == 3
    assert sorted(world.given()) == sorted(world.chunks())
    assert world.peers.accused == []


async def test_no_byte_is_fetched_twice_over_failures_and_restarts(world, data, autojump_clock):
    def gone_for_good():
        fragile.before = gone
        gone()

    fragile = world.add("a")
    for _ in range(2):
        fragile.before, fragile.after = nothing, gone_for_good
        with pytest.raises(SourceUnavailable, match="What has come is kept"):
            await world.taker.mailbox.ask(AcquireModel("wide"))
    assert data.files("transfers") != []
    async with data.running() as again:  # another incarnation on the same folder
        fragile.before = fragile.after = nothing
        await again.mailbox.ask(AcquireModel("wide"))
        assert is_whole(world, again)
    assert sorted(fragile.given) == sorted(world.chunks())


async def test_cancelling_keeps_what_has_come(world, data, autojump_clock):
    slow = world.add("a", after=lambda: trio.sleep(1))  # noqa: ASYNC105  # awaited there
    with trio.move_on_after(2.5):
        await world.taker.mailbox.ask(AcquireModel("wide"))
    slow.after = lambda: None
    await trio.sleep(1)
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert is_whole(world)
    assert len(slow.given) == len(world.chunks()) + len(
        [each for each in set(slow.given) if slow.given.count(each) > 1]
    )
    assert len(slow.given) <= len(world.chunks()) + 1


async def test_what_nobody_has_is_named(world, autojump_clock):
    world.add("a", blocks=range(1, 3))
    with pytest.raises(SourceUnavailable, match="nobody has block 0"):
        await world.taker.mailbox.ask(AcquireModel("wide"))


async def test_a_name_that_nobody_has_is_refused_with_what_there_is(world):
    world.add("a")
    with pytest.raises(SourceUnavailable, match="they have: wide"):
        await world.taker.mailbox.ask(AcquireModel("mesh:nothing"))
    with pytest.raises(RequestError, match="not a model reference"):
        await world.taker.mailbox.ask(AcquireModel("nothing"))


async def test_a_full_disk_in_the_middle_of_a_chunk_is_said_and_nothing_is_lost(
    world, data, monkeypatch, autojump_clock
):
    giver = world.add("a")
    written = []

    def pwrite(descriptor, view, offset):
        if len(written) >= 3:
            raise OSError(28, "No space left on device")
        written.append(offset)
        return real(descriptor, view, offset)

    real = os.pwrite
    monkeypatch.setattr(part_file.os, "pwrite", pwrite)
    with pytest.raises(FileError, match="No space left on device; free space"):
        await world.taker.mailbox.ask(AcquireModel("wide"))
    monkeypatch.setattr(part_file.os, "pwrite", real)
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert is_whole(world)
    assert len(giver.given) == len(world.chunks())


async def test_a_flipped_bit_on_disk_is_mended_by_a_peer(world, data):
    world.add("a")
    await world.taker.mailbox.ask(AcquireModel("wide"))
    block = next(shard for shard in world.manifest.shards if shard.block == 1)
    path = world.taker.catalog.path(block.id)
    flipped = bytearray(path.read_bytes())
    flipped[1000] ^= 1
    path.write_bytes(flipped)
    async with data.running() as again:
        with trio.fail_after(20):
            while not is_whole(world, again):  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.02)
    assert len(world.given()) == len(world.chunks()) + len(block.chunks)


async def test_what_is_here_is_waited_for_and_not_fetched_while_it_is_verified(
    world, data, model, tmp_path, monkeypatch
):
    await world.taker.mailbox.ask(AcquireModel(str(model)))
    world.add("a")
    gate, verify = threading.Event(), verification.verify_shard

    def slowly(*args):
        gate.wait(20)
        verify(*args)

    monkeypatch.setattr(verification, "verify_shard", slowly)
    async with data.running() as again, trio.open_nursery() as nursery:
        assert again.catalog.unchecked() == {world.manifest.id}
        nursery.start_soon(again.mailbox.ask, AcquireModel(f"mesh:{world.manifest.id}"))
        nursery.start_soon(again.mailbox.ask, ExportModel("wide", str(tmp_path / "stick")))
        await trio.testing.wait_all_tasks_blocked(0.01)
        gate.set()
    assert world.given() == []
    assert len(list((tmp_path / "stick").glob("*.shard"))) == len({shard.id for shard in world.manifest.shards})
    assert again.catalog.unchecked() == frozenset()


async def test_a_share_is_what_was_made_here_and_fits_or_nothing_of_it_comes(world):
    world.add("a")
    keep = AcquireModel(f"mesh:{world.manifest.id}", BlockRange(1, 2), unasked=True)
    (block,) = (each for each in world.manifest.shards if each.block == 1)
    lacking = block.nbytes + world.manifest.shards[0].nbytes
    for made, room, why in (("other", lacking, "nothing that was made here"), (block.id, lacking - 1, "blocks 1:2 of")):
        with pytest.raises(Unavailable, match=why):
            await world.taker.mailbox.ask(attrs.evolve(keep, terms=Terms(frozenset({made}), room)))
    assert world.given() == []
    await world.taker.mailbox.ask(attrs.evolve(keep, terms=Terms(frozenset({block.id}), lacking)))
    assert world.taker.catalog.is_held(block.id)


# Two who work on one model under different references


async def test_what_is_removed_while_more_of_it_comes_is_not_had_by_halves(world, model, data):
    taker, gate, reached = world.taker, trio.Event(), trio.Event()
    await taker.mailbox.ask(AcquireModel(str(model), BlockRange(0, 1)))

    def after():
        reached.set()
        return gate.wait()

    async def add():
        with pytest.raises(SourceUnavailable, match="removed meanwhile; add it again"):
            await taker.mailbox.ask(AcquireModel(f"mesh:{world.manifest.id}"))

    world.add("a", after=after)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        await reached.wait()
        await taker.mailbox.ask(RemoveModel("wide"))
        gate.set()
    assert taker.catalog.manifests() == ()
    assert data.files("shards") == data.files("partial") == []
    await taker.mailbox.ask(AcquireModel(f"mesh:{world.manifest.id}"))
    assert is_whole(world)


async def test_blocks_are_dropped_from_what_a_model_has_become(world, model, data):
    taker, jobs = world.taker, jobs_of(world)
    await taker.mailbox.ask(AcquireModel(str(model), BlockRange(0, 1)))
    before = taker.catalog.entry(world.manifest.id)
    await taker.mailbox.ask(AcquireModel(str(model), BlockRange(1, 2)))
    await jobs.shrink(before, BlockRange(0, 1))
    entry = taker.catalog.entry(world.manifest.id)
    assert {shard.block for shard in world.manifest.shards if shard.id in entry.wanted} == {None, 1}
    assert {path.stem for path in data.files("shards")} == set(entry.wanted) == taker.catalog.held(world.manifest.id)
    await jobs.remove(before)
    for work in (jobs.remove(before), jobs.shrink(before, BlockRange(0, 1))):
        with pytest.raises(UnknownModel, match="removed meanwhile"):
            await work


@attrs.define(eq=False)
class HeldUp(Lanes):
    """Does nothing before the gate opens."""

    gate: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await self.gate.wait()
        return await super().run(lane, function, *args, abandon_on_cancel=abandon_on_cancel)


async def test_a_further_name_is_not_given_to_what_is_removed_at_that_moment(world, model):
    lanes, catalog = HeldUp(), world.taker.catalog
    await world.taker.mailbox.ask(AcquireModel(str(model)))
    entry, jobs = catalog.entry(world.manifest.id), jobs_of(world, lanes)
    await catalog.put(attrs.evolve(entry, origins=(Origin("one", "bytes", "one@1"),)))

    class Other:
        async def look(self, reference):
            await trio.lowlevel.checkpoint()
            return Origin(reference, "bytes", "two@1")

    async def add():
        with pytest.raises(SourceUnavailable, match="removed meanwhile; add it again"):
            await jobs.acquire(Other(), "two", Part())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.remove, entry)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(add)
        await trio.testing.wait_all_tasks_blocked()
        lanes.gate.set()
    assert catalog.manifests() == ()


def jobs_of(world, lanes=None):
    return ModelJobs(world.taker.catalog, lanes or Lanes(), ProgressBoard(Latest(())))


# Manifests


def changed(manifest, **changes):
    """Return a manifest with its own right id."""
    other = attrs.evolve(manifest, **changes)
    return attrs.evolve(other, id=manifest_id(other.config, other.shards))


def with_shard(manifest, at, **changes):
    shards = list(manifest.shards)
    shards[at] = attrs.evolve(shards[at], **changes)
    return changed(manifest, shards=tuple(shards))


LIES = {
    "another size": lambda m: with_shard(m, 2, nbytes=m.shards[2].nbytes + 1),
    "a chunk too few": lambda m: with_shard(m, 2, chunks=m.shards[2].chunks[:-1]),
    "a path for an id": lambda m: with_shard(m, 2, id="../../../etc/passwd"),
    "a block twice": lambda m: with_shard(m, 3, block=0),
    "a shard too few": lambda m: changed(m, shards=m.shards[:-1]),
    "tensors moved": lambda m: with_shard(m, 2, tensors=m.shards[3].tensors),
    "a tensor of another shape": lambda m: with_shard(
        m, 2, tensors=(attrs.evolve(m.shards[2].tensors[0], shape=(7, 7)), *m.shards[2].tensors[1:])
    ),
    "four billion blocks": lambda m: changed(m, config=attrs.evolve(m.config, block_count=1 << 32)),
    "no shards": lambda m: changed(m, shards=()),
    "nothing in it": lambda m: with_shard(m, 0, nbytes=0, chunks=()),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_manifest_that_contradicts_itself_is_refused(world, lie):
    lying = LIES[lie](world.manifest)
    with pytest.raises(InvalidModelFile):
        decode_manifest(encode_manifest(lying), lying.id)


async def test_a_manifest_is_of_the_model_that_was_asked_for_or_refused(world):
    data = encode_manifest(world.manifest)
    assert decode_manifest(data, world.manifest.id) == world.manifest
    for wrong in (b"", b"\xff" * 50, data[:-10], msgspec.msgpack.encode([1])):
        with pytest.raises(InvalidModelFile, match="malformed"):
            decode_manifest(wrong, world.manifest.id)
    other = changed(world.manifest, config=attrs.evolve(world.manifest.config, rope_base=9.0))
    with pytest.raises(InvalidModelFile, match="another model"):
        decode_manifest(encode_manifest(other), world.manifest.id)
    with pytest.raises(InvalidModelFile, match="another model"):
        decode_manifest(encode_manifest(attrs.evolve(other, id=world.manifest.id)), world.manifest.id)
    named = attrs.evolve(world.manifest, name="../../Etc/passwd \x00")
    assert decode_manifest(encode_manifest(named), named.id).name == "etc-passwd"


async def test_a_peer_that_lies_about_a_manifest_is_named_and_another_asked(world, monkeypatch):
    class Liar(Giver):
        async def manifest(self, model):
            await trio.lowlevel.checkpoint()
            return b"nonsense"

    world.peers.givers["a"] = Liar(world.giver.catalog)
    world.add("b")
    await world.taker.mailbox.ask(AcquireModel("wide"))
    assert world.peers.accused == ["a"]
    assert is_whole(world)


# The shelf, and the parts


async def test_only_what_is_verified_is_given(world):
    shelf = CatalogShelf(world.taker.catalog)
    with pytest.raises(Unavailable):
        shelf.path(world.manifest.shards[0].id)
    with pytest.raises(Unavailable):
        shelf.manifest(world.manifest.id)
    assert CatalogShelf(world.giver.catalog).path(world.manifest.shards[0].id).exists()


def test_a_part_that_another_model_has_taken_along_is_there_all_the_same(tmp_path):
    data = b"what two models have in common"
    digest = blake3(data).hexdigest()
    shard = ShardDescriptor(digest, ShardKind.TOKENIZER, None, len(data), (digest,), ())
    folders = [tmp_path / "first", tmp_path / "second"]
    parts = [open_part(tmp_path, shard) for _ in folders]
    for part, staging in zip(parts, folders, strict=True):
        staging.mkdir()
        part.write(0, data)
        part.finish(staging)
        open_part(tmp_path, shard).close()  # for one more model, of which nothing has come
    assert [(staging / shard_file_name(shard.id)).read_bytes() for staging in folders] == [data, data]
    assert begun(tmp_path, shard.id)


async def test_parts_are_known_by_their_bytes_and_forgotten_when_they_are_old(world, tmp_path):
    shard = next(shard for shard in world.manifest.shards if shard.block == 0)
    data = world.giver.catalog.path(shard.id).read_bytes()
    folder = tmp_path / "parts"
    part = open_part(folder, shard)
    assert (part.held, part.done_bytes) == (set(), 0)
    last = len(shard.chunks) - 1
    part.write(last, data[last * CHUNK_BYTES :])
    part.write(0, data[:CHUNK_BYTES])
    part.close()
    again = open_part(folder, shard)
    assert again.held == {0, last}
    assert again.done_bytes == CHUNK_BYTES + len(data) - last * CHUNK_BYTES
    again.close()
    forget_parts(folder, frozenset(), oldest=0)
    assert again.path.exists()
    forget_parts(folder, frozenset({shard.id}), oldest=0)
    assert not again.path.exists()
