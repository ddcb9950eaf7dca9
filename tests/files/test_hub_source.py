"""Models from a hub: a real server with the hub's routes, and what can go wrong on the way."""

import json
import os
import shutil

import httpx
import pytest
import trio
from support.full_store import FullStore
from support.hub_server import run_hub
from support.tiny_checkpoint import write_tiny_checkpoint
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import FileError, InvalidModelFile, RequestError, SourceUnavailable, StoreError, UnsupportedModel
from meshnode.files.acquisitions import AcquireModel, RemoveModel
from meshnode.files.hub_client import Hub
from meshnode.files.hub_mirror import BLOCK_BYTES, forget_mirror, open_mirror
from meshnode.files.hub_reference import HubReference
from meshnode.files.hub_source import HubSource
from meshnode.files.importing import import_gguf
from meshnode.files.local_gguf import LocalGGUF
from meshnode.files.safetensors_folder import SafetensorsFolder
from meshnode.flow.lanes import Lanes
from meshnode.types.blocks import BlockRange

pytestmark = [
    pytest.mark.processes,
    # httpx leaves its generators to the garbage collector when an answer breaks off, which Trio points out.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
REPOSITORY = "someone/big-GGUF"


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A model of some 11 MB, so that it has several blocks."""
    return write_tiny_llama(
        tmp_path_factory.mktemp("big") / "big-Q8_0.gguf", quantization="Q8_0", blocks=6, feed_forward=2048, name="Big"
    )


@pytest.fixture(scope="module")
def big_id(big, tmp_path_factory):
    return import_gguf(big, tmp_path_factory.mktemp("shards")).id


@pytest.fixture
def hub(big):
    with run_hub() as hub:
        hub.repositories[REPOSITORY] = {"README.md": b"hello", "big-Q8_0.gguf": big.read_bytes()}
        yield hub


def use(data, hub, **options):
    options = {"endpoint": hub.endpoint, "token": hub.token} | options
    data.sources = (
        HubSource(Hub(**options), Lanes(), data.paths.transfers, pause=0.01),
        LocalGGUF(),
        SafetensorsFolder(),
    )
    return data


@pytest.fixture
def node_data(data, hub):
    return use(data, hub)


async def test_a_model_comes_with_every_byte_once(node_data, hub, big, big_id):
    async with node_data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
        assert manifest.id == big_id
        assert len(node.catalog.held(manifest.id)) == len({shard.id for shard in manifest.shards})
        assert manifest.source == f"{REPOSITORY}@{hub.commit(REPOSITORY)[:12]}/big-Q8_0.gguf"
    assert hub.sent_bytes == big.stat().st_size
    assert node_data.files("transfers") == []


async def test_it_is_not_fetched_again(node_data, hub):
    async with node_data.running() as node:
        first = await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}:Q8_0"))
        sent = hub.sent_bytes
        assert await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}:Q8_0")) == first
        hub.repositories[REPOSITORY]["README.md"] = b"another commit, the same model"
        assert await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}:Q8_0")) == first
    assert hub.sent_bytes == sent


async def test_of_a_known_model_only_the_ranges_of_the_missing_shards_come(node_data, hub, big):
    async with node_data.running() as node:
        await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}", BlockRange(0, 1)))
        hub.sent_bytes = 0
        manifest = await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}", BlockRange(3, 4)))
        (block,) = [shard for shard in manifest.shards if shard.block == 3]
        assert block.id in node.catalog.held(manifest.id)
        assert block.nbytes - 4096 <= hub.sent_bytes <= block.nbytes + 4 * BLOCK_BYTES < big.stat().st_size
        (origin,) = node.catalog.entry(manifest.id).origins
        hub.push(REPOSITORY, **{"big-Q8_0.gguf": b"a newer version"})
        assert (
            await node.mailbox.ask(AcquireModel(origin.exact, BlockRange(2, 3), unasked=True)) == manifest
        )  # as placement
        assert hub.sent_bytes <= 2 * block.nbytes + 8 * BLOCK_BYTES


async def test_a_damaged_shard_is_made_again_from_the_commit_it_came_from(node_data, hub):
    async with node_data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
        path = node.catalog.path(manifest.shards[4].id)
        (origin,) = node.catalog.entry(manifest.id).origins
    path.write_bytes(b"x" * path.stat().st_size)
    commit = hub.push(REPOSITORY, **{"big-Q8_0.gguf": b"a newer version"})
    assert origin.pinned == f"hf:{REPOSITORY}@{commit}"
    async with node_data.running() as node:
        await node.settled(manifest)
        assert await node.mailbox.ask(AcquireModel(origin.pinned)) == manifest
        with pytest.raises(InvalidModelFile):  # who asks for the reference itself gets the newest
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))


async def test_two_references_to_one_file_share_what_comes(node_data, hub, big, big_id):
    references = [f"hf:{REPOSITORY}", f"hf:{REPOSITORY}:Q8_0"]
    async with node_data.running() as node:
        async with trio.open_nursery() as nursery:
            for reference in references:
                nursery.start_soon(node.mailbox.ask, AcquireModel(reference))
        assert {origin.reference for origin in node.catalog.entry(big_id).origins} == set(references)
        await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}:big-Q8_0.gguf"))
    assert hub.sent_bytes == big.stat().st_size
    assert node_data.files("transfers") == []


async def test_a_split_model_is_the_same_model(data, hub, big_id, tmp_path):
    write_tiny_llama(
        tmp_path / "big.gguf", quantization="Q8_0", blocks=6, feed_forward=2048, name="Big", split=20, rope_freqs=False
    )
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 3
    hub.repositories["someone/split"] = {f"Q8_0/{path.name}": path.read_bytes() for path in parts}
    async with use(data, hub).running() as node:
        assert (await node.mailbox.ask(AcquireModel("hf:someone/split:Q8_0"))).id == big_id
        await node.mailbox.ask(RemoveModel("big"))
        assert (await node.mailbox.ask(AcquireModel(str(parts[1])))).id == big_id


async def test_a_part_that_is_missing_is_named(data, tmp_path):
    first = write_tiny_llama(tmp_path / "big.gguf", split=8)
    parts = sorted(tmp_path.glob("*.gguf"))
    async with data.running() as node:
        parts[1].rename(tmp_path / "elsewhere")
        with pytest.raises(SourceUnavailable, match=parts[1].name):
            await node.mailbox.ask(AcquireModel(str(first)))
        shutil.copy(parts[0], parts[1])
        with pytest.raises(InvalidModelFile, match=r"part 2 of .* says that it is number 0"):
            await node.mailbox.ask(AcquireModel(str(first)))
        with pytest.raises(InvalidModelFile, match="is one of 3 parts of a model; keep them together"):
            await node.mailbox.ask(AcquireModel(str(parts[2].rename(tmp_path / "alone.gguf"))))


async def test_rope_factors_come_with_the_header(data, hub, tmp_path):
    path = write_tiny_llama(tmp_path / "r.gguf", quantization="Q8_0", blocks=4, feed_forward=2048, rope_freqs=True)
    hub.repositories["someone/rope"] = {"r.gguf": path.read_bytes()}
    async with use(data, hub).running() as node:
        manifest = await node.mailbox.ask(AcquireModel("hf:someone/rope"))
    assert manifest.id == import_gguf(path, tmp_path / "shards").id


async def test_a_checkpoint_comes_as_its_folder_would(data, hub, tmp_path):
    folder = tmp_path / "checkpoint"
    write_tiny_checkpoint(folder, files=2)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories["someone/tiny"] = files | {"README.md": b"x", "onnx/model.onnx": b"y"}
    async with use(data, hub).running() as node:
        manifest = await node.mailbox.ask(AcquireModel("hf:someone/tiny", BlockRange(0, 1)))
        whole = await node.mailbox.ask(AcquireModel("hf:someone/tiny"))
        assert (await node.mailbox.ask(AcquireModel(str(folder)))).id == manifest.id == whole.id
        assert manifest.name == "tiny"
    assert not any("onnx" in path for _, path, _ in hub.seen)


@pytest.mark.parametrize("fault", ["429", "503", "expired", "cut", "stall"])
async def test_what_passes_is_waited_for(data, hub, big, big_id, fault):
    hub.faults = [fault, "", fault, fault]
    stall = 0.5 if fault == "stall" else 30.0  # on a busy machine an answer is silent for a moment
    async with use(data, hub, stall=stall).running() as node:
        assert (await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))).id == big_id
    assert hub.faults == []
    assert hub.sent_bytes < big.stat().st_size + 3 * BLOCK_BYTES


async def test_a_busy_hub_is_asked_again_what_it_has(node_data, hub, big_id):
    hub.lookup_faults = [429, 503, "no gzip"]
    async with node_data.running() as node:
        assert (await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))).id == big_id


async def test_a_list_that_is_no_text_is_refused(node_data, hub):
    hub.lookup_faults = ["no UTF-8"]
    async with node_data.running() as node:
        with pytest.raises(SourceUnavailable, match="does not answer as a hub does"):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("changed", "has been changed on the hub"),
        ("other size", "was asked for bytes"),
        ("ranges ignored", "does not serve parts|tried 6 times"),
        ("503", "answers 503 .*; tried 6 times. What has come is kept"),
        ("404", "has no big-Q8_0.gguf"),
    ],
)
async def test_what_does_not_pass_is_said_and_nothing_is_left_in_the_catalog(node_data, hub, fault, message):
    hub.faults = ["", *[fault] * 40]
    async with node_data.running() as node:
        with pytest.raises(SourceUnavailable, match=message):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
        assert node.catalog.manifests() == ()
        assert node_data.files("partial") == []


async def test_other_bytes_than_the_hub_promised_are_thrown_away(node_data, hub, big_id):
    hub.faults = ["", "other bytes"]
    async with node_data.running() as node:
        with pytest.raises(SourceUnavailable, match="came with other bytes than the hub says"):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
        assert (await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))).id == big_id


async def test_a_hub_that_gives_a_part_other_bytes_once_is_asked_again(node_data, hub):
    async with node_data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}", BlockRange(0, 1)))
        hub.faults = ["", "other bytes"]
        with pytest.raises(SourceUnavailable, match="thrown away, so another try fetches it anew"):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}", BlockRange(3, 4)))
        assert await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}", BlockRange(3, 4))) == manifest


def kept_bytes(data):
    """Return how much of the downloads is on the disk: whole blocks, by their records of 40 bytes."""
    return BLOCK_BYTES * sum(path.stat().st_size // 40 for path in data.files("transfers") if path.suffix == ".blocks")


async def test_what_has_come_is_kept_over_a_restart(node_data, hub, big, big_id):
    hub.faults = ["", "cut", "", "cut", "404"]
    async with node_data.running() as node:
        with pytest.raises(SourceUnavailable):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
    assert (kept := kept_bytes(node_data)) > 0
    hub.faults, hub.sent_bytes = [], 0
    async with node_data.running() as node:
        assert (await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))).id == big_id
    assert hub.sent_bytes <= big.stat().st_size - kept + BLOCK_BYTES


async def test_what_has_come_outlives_a_clock_that_jumps_and_not_a_week_of_newer_ones(node_data):
    folder = node_data.paths.transfers
    open_mirror(folder, "last", 10).close()
    (folder / f"{'a' * 64}.part").touch()
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    async with node_data.running():
        assert len(node_data.files("transfers")) == 3
    open_mirror(folder, "newer", 10).close()
    async with node_data.running():
        assert len(node_data.files("transfers")) == 2


async def test_a_cancelled_download_goes_on_where_it_was(data, hub, big, big_id):
    hub.faults = ["", "stall"]
    async with use(data, hub, stall=30.0).running() as node:
        async with trio.open_nursery() as asking:
            asking.start_soon(node.mailbox.ask, AcquireModel(f"hf:{REPOSITORY}"))
            while hub.sent_bytes < big.stat().st_size // 3:  # noqa: ASYNC110  # on a busy machine it begins late
                await trio.sleep(0.05)
            await trio.sleep(1.0)  # for what has been sent to come
            asking.cancel_scope.cancel()
        await node.idle()
        assert data.files("partial") == []
        assert (kept := kept_bytes(data)) > 0
        hub.sent_bytes = 0
        assert (await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))).id == big_id
    assert hub.sent_bytes <= big.stat().st_size - kept + BLOCK_BYTES


async def test_the_token_goes_to_the_hub_and_nowhere_else(data, hub):
    hub.token = "hf_secret"
    async with use(data, hub).running() as node:
        await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
    assert {(server, sent) for server, _, sent in hub.seen} == {("front", "Bearer hf_secret"), ("storage", None)}


async def test_without_a_token_what_is_gated_says_what_to_do(data, hub):
    hub.token = "hf_secret"
    async with use(data, hub, token=None).running() as node:
        with pytest.raises(SourceUnavailable, match=f"set HF_TOKEN .* accept its terms at {hub.endpoint}/{REPOSITORY}"):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))


async def test_offline_the_hub_is_not_asked_and_what_is_here_is_used(node_data, hub):
    async with node_data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
    asked = len(hub.seen)
    async with use(node_data, hub, offline=True).running() as node:
        await node.settled(manifest)
        assert await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}")) == manifest
        with pytest.raises(SourceUnavailable, match=r"offline, .* node.offline .*HF_HUB_OFFLINE"):
            await node.mailbox.ask(AcquireModel("hf:someone/else"))
    assert len(hub.seen) == asked


async def test_nobody_there(data, hub):
    async with use(data, hub, endpoint="http://127.0.0.1:9").running() as node:
        with pytest.raises(SourceUnavailable, match=r"http://127.0.0.1:9 was asked for .*; tried 6 times"):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
    async with use(data, hub, endpoint="nonsense").running() as node:
        with pytest.raises(SourceUnavailable):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))


@pytest.mark.parametrize("reference", ["hf:nobody/nothing", f"hf:{REPOSITORY}@v9", f"hf:{REPOSITORY}:Q2_K"])
async def test_what_the_hub_does_not_have(node_data, reference):
    async with node_data.running() as node:
        with pytest.raises(SourceUnavailable, match="has no"):
            await node.mailbox.ask(AcquireModel(reference))


async def test_a_malformed_reference(node_data):
    async with node_data.running() as node:
        with pytest.raises(RequestError, match="not a hub reference"):
            await node.mailbox.ask(AcquireModel("hf:../../etc"))


async def test_what_is_refused_is_refused_by_its_header(data, hub, big):
    def examine(model):
        raise UnsupportedModel(f"no tokenizer for {model.name}")

    source = HubSource(Hub(hub.endpoint), Lanes(), data.paths.transfers, examine, pause=0.01)
    data.sources = (source,)
    async with data.running() as node:
        with pytest.raises(UnsupportedModel, match="no tokenizer for big"):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
    assert hub.sent_bytes <= 2 * BLOCK_BYTES < big.stat().st_size


async def test_no_gguf_behind_the_name(data, hub):
    hub.repositories["someone/junk"] = {"junk.gguf": b"<html>" * 1000, "half.gguf": b"GGUF\3\0\0\0" + bytes(4)}
    async with use(data, hub).running() as node:
        with pytest.raises(InvalidModelFile, match="not a GGUF file"):
            await node.mailbox.ask(AcquireModel("hf:someone/junk:junk.gguf"))
        with pytest.raises(InvalidModelFile, match="truncated"):
            await node.mailbox.ask(AcquireModel("hf:someone/junk:half.gguf"))


async def test_a_list_that_is_none(data, hub, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda _value: "[1, 2]")
    async with use(data, hub).running() as node:
        with pytest.raises(SourceUnavailable, match="does not answer as a hub does"):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))


async def test_files_of_which_a_hub_gives_no_hash_are_told_apart_by_where_they_are():
    def answer(request):
        name = request.url.path.split("/")[4]
        return httpx.Response(
            200, json={"sha": f"{name} now", "siblings": [{"rfilename": each, "size": 9} for each in "xy"]}
        )

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as connections:
        found = [await Hub().repository(connections, HubReference.parse(f"hf:someone/{name}")) for name in ("a", "b")]
    assert len({file.oid for repository in found for file in repository.files}) == 4


def test_the_environment_names_the_hub():
    hub = Hub.of({"HF_ENDPOINT": "http://mirror/", "HF_TOKEN": "t", "HF_HUB_OFFLINE": "1"}, offline=False)
    assert (hub.endpoint, hub.token, hub.offline) == ("http://mirror", "t", True)
    assert not Hub.of({}, offline=False).offline
    assert Hub.of({}, offline=True).offline
    assert "t'" not in repr(hub)


def test_a_mirror_knows_by_hash_what_it_has(tmp_path):
    size = 3 * BLOCK_BYTES + 5
    mirror = open_mirror(tmp_path, "key", size)
    blocks = {0: b"a" * BLOCK_BYTES, 2: b"c" * BLOCK_BYTES, 3: b"d" * 5}
    for block, data in blocks.items():
        mirror.write(block, data)
    mirror.close()
    with mirror.path.open("r+b") as file:
        file.seek(2 * BLOCK_BYTES)
        file.write(b"x")
    with mirror.path.with_suffix(".blocks").open("ab") as file:
        file.write(b"half a record")
    again = open_mirror(tmp_path, "key", size)
    assert again.held == {0, 3}
    again.write(2, blocks[2])
    again.write(1, b"b" * BLOCK_BYTES)
    assert again.is_whole
    again.close()
    assert open_mirror(tmp_path, "key", size).held == {0, 1, 2, 3}


def test_what_two_have_open_is_deleted_by_the_last(tmp_path):
    first, second = open_mirror(tmp_path, "key", 10), open_mirror(tmp_path, "key", 10)
    first.write(0, b"0123456789")
    first.forget()
    forget_mirror(tmp_path, "key")
    assert second.path.read_bytes() == b"0123456789"
    second.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path):
    mirror = open_mirror(tmp_path, "key", 10)
    mirror.close()
    with pytest.raises(FileError, match="cannot write"):
        mirror.write(0, b"0123456789")


async def test_what_has_come_is_kept_when_the_catalog_cannot_be_written(node_data, hub, big):
    good, node_data.store = node_data.store, FullStore()
    async with node_data.running() as node:
        with pytest.raises(StoreError):
            await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
    node_data.store = good
    async with node_data.running() as node:
        await node.mailbox.ask(AcquireModel(f"hf:{REPOSITORY}"))
    assert hub.sent_bytes < 1.2 * big.stat().st_size
