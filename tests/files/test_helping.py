"""Who makes a share of a model for somebody else: what it may be asked, and what of it lies here for how long."""

from types import SimpleNamespace

import attrs
import msgspec
import pytest
import trio
from support.hub_server import run_hub
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import Overloaded, RequestError, Unavailable
from meshnode.files.acquisitions import AcquireModel
from meshnode.files.hub_client import Hub
from meshnode.files.hub_mirror import open_mirror
from meshnode.files.hub_shares import HubShare, decode_made, decode_share, encode_made
from meshnode.files.hub_source import HubSource
from meshnode.files.local_gguf import LocalGGUF
from meshnode.files.shard_file import HashedBytes, hash_pieces
from meshnode.files.share_making import ShareMaker
from meshnode.files.share_records import Leftovers, ShareRecords
from meshnode.files.shelf import CatalogShelf, Helping
from meshnode.flow.lanes import Lanes
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import CHUNK_BYTES

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(60),
    # httpx leaves its generators to the garbage collector when an answer breaks off, which Trio points out.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
REFERENCE = "hf:someone/small-GGUF"
ASKER = "asker"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of some 5 MB."""
    path = tmp_path_factory.mktemp("small") / "small-Q8_0.gguf"
    return write_tiny_llama(path, quantization="Q8_0", blocks=4, hidden=512, heads=4, feed_forward=128, tied=True)


@pytest.fixture
def hub(small):
    with run_hub() as hub:
        hub.repositories["someone/small-GGUF"] = {small.name: small.read_bytes()}
        yield hub


@pytest.fixture(scope="module")
def share(small, tmp_path_factory):
    """All of the model."""
    scratch = tmp_path_factory.mktemp("scratch")
    with run_hub() as hub:
        hub.repositories["someone/small-GGUF"] = {small.name: small.read_bytes()}
        source = HubSource(Hub(endpoint=hub.endpoint), Lanes(), scratch / "transfers", pause=0.01)
        return trio.run(source.outline, REFERENCE, scratch).whole


@pytest.fixture
def helper(data, hub):
    """One that makes shares, and keeps what it is asked to."""
    return Helping(ShareMaker(Hub(endpoint=hub.endpoint), Lanes(), data.paths, pause=0.01, lent=True), Keeper())


@attrs.define
class Keeper:
    left: int = 1 << 40
    kept: list = attrs.field(factory=list)

    def room(self):
        return self.left

    async def keep(self, model, blocks, block_count, made):
        await trio.lowlevel.checkpoint()
        self.kept.append((model, {each.id for each in made}))


def shares_of(helper):
    return [record.share for record in helper.maker.records.all()]


def parts_of(helper):
    return sorted(path.stat().st_size for path in helper.maker.paths.transfers.glob("*.part"))


def silent(_done, _total):
    pass


async def stop_in_the_middle(helper, share):
    """Begin to make a share and leave; return half of its bytes, of which more have come."""
    half = share.nbytes / 2
    async with trio.open_nursery() as nursery:
        raw = msgspec.msgpack.encode(share)
        nursery.start_soon(helper.make, ASKER, raw, lambda done, _: done > half and nursery.cancel_scope.cancel())
    return half


async def test_another_division_for_the_same_peer_takes_the_place_of_the_one_before(helper, share):
    for shard in share.shards[1:4]:
        await helper.make(ASKER, msgspec.msgpack.encode(attrs.evolve(share, shards=(shard,))), silent)
    assert parts_of(helper) == [share.shards[3].nbytes]


async def test_shares_for_several_peers_lie_side_by_side_as_far_as_there_is_room(helper, share):
    one, two, both = (
        attrs.evolve(share, shards=share.shards[part]) for part in (slice(1, 2), slice(2, 3), slice(1, 3))
    )
    made = {}
    for asker, wanted in (("a", one), ("b", two), ("c", both)):
        raw = await helper.make(asker, msgspec.msgpack.encode(wanted), silent)
        made[asker] = {each.id for each in decode_made(raw, wanted)}
    helper.keeper.left = 3 * both.nbytes
    with pytest.raises(Unavailable, match=r"gives room for 3 MB more, and the share has 5"):
        await helper.make("b", msgspec.msgpack.encode(share), silent)
    assert set(shares_of(helper)) == {one, two, both}
    await helper.make("c", msgspec.msgpack.encode(attrs.evolve(share, shards=share.shards[3:4])), silent)
    assert parts_of(helper) == sorted(each.nbytes for each in share.shards[1:4]), "what others need of it stays"
    with pytest.raises(Unavailable, match="no share that this node has made for you"):
        await helper.keep("stranger", "m", BlockRange(0, 1), 4)
    await helper.keep("a", "m", BlockRange(0, 1), 4)
    await helper.forget_kept(made["a"].__contains__)
    assert helper.keeper.kept == [("m", made["a"])]
    assert one not in shares_of(helper)
    assert helper.made.keys() & made["b"]
    entry = SimpleNamespace(manifest=SimpleNamespace(shards=[SimpleNamespace(id="held", block=0)]))
    catalog = SimpleNamespace(entry=lambda _: entry, is_held={"held", *made["b"]}.__contains__)
    await CatalogShelf(catalog, helper).keep_share("b", "m", BlockRange(0, 1), 4)
    assert len(helper.keeper.kept) == 1, "another one was faster, and it is held"
    assert two not in shares_of(helper)


async def test_a_helper_that_starts_again_when_it_is_done_fetches_nothing(helper, share, hub):
    raw = msgspec.msgpack.encode(share)
    made, sent = await helper.make(ASKER, raw, silent), hub.sent_bytes
    assert await Helping(helper.maker, helper.keeper).make(ASKER, raw, silent) == made
    assert hub.sent_bytes == sent


async def test_a_helper_that_starts_again_in_the_middle_goes_on_there(helper, share):
    half = await stop_in_the_middle(helper, share)
    done = []
    await Helping(helper.maker, helper.keeper).make(
        ASKER, msgspec.msgpack.encode(share), lambda *each: done.append(each)
    )
    assert done[0][0] > half
    assert {path.suffix for path in helper.maker.paths.transfers.iterdir()} == {".part", ".lent"}


async def test_what_a_peer_says_of_a_file_touches_no_download_of_this_nodes_own(helper, share, data):
    (number,) = {tensor.file for shard in share.shards for tensor in shard.tensors}
    file, folder = share.files[number], helper.maker.paths.transfers
    own = open_mirror(folder, file.oid, file.nbytes)
    own.write(0, b"w" * own.size_of(0))
    own.close()
    await helper.make(ASKER, msgspec.msgpack.encode(share), silent)
    helper.maker.records.drop(share)
    again = open_mirror(folder, file.oid, file.nbytes)
    assert again.held == {0}
    again.forget()


async def test_what_was_made_is_believed_by_its_bytes_alone(helper, share, hub):
    raw = msgspec.msgpack.encode(attrs.evolve(share, shards=share.shards[1:3]))
    made = await helper.make(ASKER, raw, silent)
    part, sent = next(helper.maker.paths.transfers.glob("*.part")), hub.sent_bytes
    part.write_bytes(bytes(part.stat().st_size))
    assert await helper.make(ASKER, raw, silent) == made
    assert hub.sent_bytes > sent
    (record,) = helper.maker.paths.transfers.glob("*.lent")
    record.write_bytes(b"nonsense")
    assert await helper.make(ASKER, raw, silent) == made


async def test_another_division_of_the_same_files_goes_on_with_what_has_come(helper, share):
    half = await stop_in_the_middle(helper, share)
    done, other = [], attrs.evolve(share, shards=share.shards[:-1])
    await helper.make(ASKER, msgspec.msgpack.encode(other), lambda *each: done.append(each))
    assert done[0][0] > half - share.shards[-1].nbytes
    assert shares_of(helper) == [other]


async def test_what_nobody_comes_back_for_is_deleted_in_time(helper, share):
    folder = helper.maker.paths.transfers
    leftovers = Leftovers(ShareRecords(folder, lent=True))
    begun, made = (
        share,
        attrs.evolve(share, files=(attrs.evolve(share.files[0], oid="other"),), shards=share.shards[:1]),
    )
    await stop_in_the_middle(helper, begun)
    helper.maker.records.put(made, (hash_pieces([bytes(made.nbytes)]),))
    own = attrs.evolve(helper.maker, lent=False).records
    own.put(share)
    for hours, kept in ((0, {begun, made}), (0.9, {begun, made}), (1.1, {made}), (24.2, set())):
        leftovers.sweep(hours * 3600)
        assert set(shares_of(helper)) == kept
        assert bool(list(folder.glob("*.mirror"))) is (begun in kept)
    assert [each.share for each in own.all()] == [share]


async def test_the_sweep_is_done_while_the_node_runs(data, share, monkeypatch):
    monkeypatch.setattr("meshnode.files.acquisition._SWEEP_EVERY", 0.05)
    monkeypatch.setattr("meshnode.files.share_records._BEGUN", 0.1)
    async with data.running():
        ShareRecords(data.paths.transfers, lent=True).put(share)
        with trio.fail_after(10):
            while list(data.paths.transfers.iterdir()):  # noqa: ASYNC110  # nobody is told
                await trio.sleep(0.02)


async def test_what_was_made_and_taken_before_a_crash_is_forgotten_at_the_next_start(data, small, share):
    data.sources = (LocalGGUF(),)
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(small), BlockRange(0, 2)))
    said = {(each.kind, each.block): HashedBytes(each.id, each.chunks, each.nbytes) for each in manifest.shards}
    kept = {}
    for lent in (False, True):
        records = ShareRecords(data.paths.transfers, lent)
        for blocks in ((0, 1), (2, 3)):  # the latter are not here
            shards = tuple(each for each in share.shards if each.block in blocks)
            part = attrs.evolve(share, files=(attrs.evolve(share.files[0], oid=str(blocks)),), shards=shards)
            records.put(part, made := tuple(said[each.kind, each.block] for each in shards))
            for hashed in made:
                records.part(hashed).write_bytes(b"made")
            open_mirror(data.paths.transfers, records.mirror_key(part, part.files[0]), part.files[0].nbytes).close()
        kept[records] = part
    async with data.running():
        assert [[each.share for each in records.all()] for records in kept] == [[part] for part in kept.values()]
        assert len(data.files("transfers")) == 2 + 2 + 2 * 2, "records, parts of blocks 2 and 3, and mirrors"


# What a peer may ask


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"repository": "../../etc"}, "not a hub reference"),
        ({"commit": "main/../x"}, "not a hub reference"),
        ({"files": []}, "0 files"),
        ({"shards": []}, "0 shards"),
        ({"path": "a/../../b"}, "a file"),
        ({"path": "a\nb"}, "a file"),
        ({"offset": -1}, "outside its file"),
        ({"offset": 1 << 60}, "outside its file"),
        ({"tensor bytes": 0}, "outside its file"),
        ({"file": 7}, "outside its file"),
        ({"shape": []}, "has the shape"),
        ({"shape": [0, 3]}, "has the shape"),
    ],
    ids=str,
)
async def test_shares_that_cannot_be_are_refused(share, change, reason):
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(share))
    for field, value in change.items():
        tensor = raw["shards"][0]["tensors"][0]
        if field in raw:
            raw[field] = value
        elif field == "path":
            raw["files"][0]["path"] = value
        else:
            tensor["nbytes" if field == "tensor bytes" else field] = value
    with pytest.raises(RequestError, match=reason):
        decode_share(msgspec.msgpack.encode(raw))


async def test_garbage_is_no_share():
    for raw in (b"", b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({"repository": "a/b"})):
        with pytest.raises(RequestError, match="cannot be made"):
            decode_share(raw)


async def test_a_share_travels_as_it_is(share):
    assert decode_share(msgspec.msgpack.encode(share)) == share
    with pytest.raises(ValueError, match="shorter"):
        decode_made(msgspec.msgpack.encode([]), share)
    sizes = [HashedBytes("0" * 64, ("0" * 64,) * -(-each.nbytes // CHUNK_BYTES), each.nbytes) for each in share.shards]
    assert decode_made(encode_made(sizes), share) == tuple(sizes)
    with pytest.raises(ValueError, match="is said to have"):
        decode_made(encode_made([attrs.evolve(sizes[0], nbytes=sizes[0].nbytes + 1), *sizes[1:]]), share)
    assert isinstance(share, HubShare)


async def test_one_share_at_a_time(helper, hub, share):
    hub.faults.append("stall")
    async with trio.open_nursery() as nursery:
        raw = msgspec.msgpack.encode(share)
        nursery.start_soon(helper.make, ASKER, raw, lambda *_: None)
        await trio.sleep(0.1)
        with pytest.raises(Overloaded, match="making a share already"):
            await helper.make(ASKER, raw, lambda *_: None)
        nursery.cancel_scope.cancel()
