"""A model on a stick: what comes off it is what went on, or is refused by name."""

import shutil

import attrs
import pytest
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import FileError, InvalidModelFile, ShardCorrupt, SourceUnavailable, UnknownModel
from meshnode.files.acquisitions import AcquireModel, ExportModel
from meshnode.files.shard_folder import shard_folder_at
from meshnode.store.memory import MemoryStore
from meshnode.types.blocks import BlockRange


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("m") / "m.gguf", name="Carried", blocks=3)


@pytest.fixture
async def stick(data, model, tmp_path):
    """An exported model, its manifest, and a node that has nothing."""
    folder, elsewhere = tmp_path / "stick", attrs.evolve(data, root=tmp_path / "giver", store=MemoryStore())
    async with elsewhere.running() as giver:
        await giver.mailbox.ask(AcquireModel(str(model)))
        manifest = await giver.mailbox.ask(ExportModel("carried", str(folder)))
        shard = next(iter(folder.glob("*.shard")))
        shard.write_bytes(bytes(shard.stat().st_size))  # suffers on the way
        assert await giver.mailbox.ask(ExportModel("carried", str(folder))) == manifest  # again, over it, and mended
        with pytest.raises(UnknownModel):
            await giver.mailbox.ask(ExportModel("another", str(folder)))
    return folder, manifest


def ids(manifest):
    return {shard.id for shard in manifest.shards}


async def test_it_is_taken_from_the_folder_and_the_folder_may_go(data, stick):
    folder, manifest = stick
    async with data.running() as node:
        assert await node.mailbox.ask(AcquireModel(str(folder))) == manifest
        assert node.catalog.held(manifest.id) == ids(manifest)
        shutil.rmtree(folder)
    async with data.running() as node:
        await node.settled(manifest)
    assert data.files("partial") == []


async def test_a_part_is_taken_where_that_is_all_there_is(data, stick):
    folder, manifest = stick
    last = next(shard for shard in manifest.shards if shard.block == 2)
    (folder / f"{last.id}.shard").unlink()
    async with data.running() as node:
        with pytest.raises(
            SourceUnavailable, match=r"stick has .*the embedding, blocks 0:2, the head, and lacks blocks 2:3; name"
        ):
            await node.mailbox.ask(AcquireModel(str(folder)))
        assert node.catalog.manifests() == ()
        await node.mailbox.ask(AcquireModel(str(folder), BlockRange(0, 2)))
        assert last.id not in node.catalog.held(manifest.id)
        assert len(node.catalog.held(manifest.id)) == 4


async def test_a_flipped_bit_and_a_manifest_that_lies_are_refused(data, stick):
    folder, _ = stick
    shard = next(iter(folder.glob("*.shard")))
    right = shard.read_bytes()
    shard.write_bytes(bytes([right[0] ^ 1]) + right[1:])
    async with data.running() as node:
        with pytest.raises(ShardCorrupt, match="other bytes than the manifest says"):
            await node.mailbox.ask(AcquireModel(str(folder)))
        shard.write_bytes(right)
        whole = (folder / "manifest.msgpack").read_bytes()
        (folder / "manifest.msgpack").write_bytes(whole[:-9])
        with pytest.raises(InvalidModelFile, match="malformed"):
            await node.mailbox.ask(AcquireModel(str(folder)))
        (folder / "manifest.msgpack").write_bytes(whole.replace(b"llama", b"LLAMA", 1))
        with pytest.raises(InvalidModelFile, match="another model"):
            await node.mailbox.ask(AcquireModel(str(folder)))
        assert node.catalog.manifests() == ()
    assert data.files("partial") == []


async def test_a_folder_with_another_model_and_one_that_cannot_be_written_are_refused(data, stick, tmp_path):
    folder, _ = stick
    other = write_tiny_llama(tmp_path / "o.gguf", name="Other", blocks=2, seed=5)
    (tmp_path / "file").touch()
    async with data.running() as node:
        await node.mailbox.ask(AcquireModel(str(other)))
        with pytest.raises(FileError, match="holds another model already"):
            await node.mailbox.ask(ExportModel("other", str(folder)))
        with pytest.raises(FileError, match="cannot export to"):
            await node.mailbox.ask(ExportModel("other", str(tmp_path / "file" / "below")))


@pytest.mark.parametrize("reference", ["starter", "", "\0", "~nobody/x", "hf:owner/repo", "/nowhere"])
def test_other_references_are_no_folders(reference):
    assert shard_folder_at(reference) is None
