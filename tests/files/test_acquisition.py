"""The manager as its users see it: ask for a model, look at the catalog, pull the plug, come back."""

import shutil

import attrs
import pytest
import trio
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import (
    FileError,
    InvalidModelFile,
    RequestError,
    SourceUnavailable,
    Unavailable,
    UnknownModel,
    UnsupportedModel,
)
from meshnode.files.acquisitions import AcquireModel, RemoveModel
from meshnode.files.builtin_sources import builtin_sources
from meshnode.files.local_gguf import LocalGGUF
from meshnode.files.shard_file import shard_path
from meshnode.files.sources import Origin
from meshnode.flow.lanes import Lanes
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ShardKind


def _ids(manifest):
    return {shard.id for shard in manifest.shards}


async def test_an_acquired_model_is_held_named_and_on_disk(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
        assert node.catalog.manifests() == (manifest,)
        assert node.catalog.held(manifest.id) == _ids(manifest)
        assert {node.catalog.path(shard) for shard in _ids(manifest)} == set(data.files("shards"))
        assert data.files("partial") == []
        assert [row.phase for row in node.progress.value] == ["done"]
        assert node.metrics.files_shards_held._value.get() == len(_ids(manifest))
        assert node.metrics.files_shards_bytes._value.get() == sum(p.stat().st_size for p in data.files("shards"))


async def test_after_a_restart_the_model_is_verified_and_held_again(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
    async with data.running() as node:
        assert node.catalog.manifests() == (manifest,)
        assert node.catalog.held(manifest.id) == frozenset()  # nothing is held before it is verified
        await node.settled(manifest)


async def test_what_is_here_is_not_read_again(data, tiny, tmp_path):
    path = shutil.copy2(tiny, tmp_path / "m.gguf")
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(path)))
        before = {path: path.stat().st_mtime_ns for path in data.files("shards")}
        path.unlink()
        assert await node.mailbox.ask(AcquireModel(str(path))) == manifest
        assert {path: path.stat().st_mtime_ns for path in data.files("shards")} == before


async def test_a_flipped_bit_is_quarantined_and_the_shard_made_again(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
    victim = shard_path(data.paths.shards, manifest.shards[2].id)
    good = victim.read_bytes()
    victim.write_bytes(good[:5000] + bytes([good[5000] ^ 4]) + good[5001:])
    async with data.running() as node:
        await node.settled(manifest)
        assert victim.read_bytes() == good
        assert [path.name for path in data.files("quarantine")] == [victim.name]
        assert node.metrics.files_quarantined_total._value.get() == 1
        assert node.health.conditions() == ()


async def test_a_flipped_bit_that_cannot_be_repaired_is_never_held_and_says_so(data, tiny, tmp_path):
    path = shutil.copy2(tiny, tmp_path / "m.gguf")
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(path)))
    victim = manifest.shards[2].id
    raw = bytearray(shard_path(data.paths.shards, victim).read_bytes())
    raw[-1] ^= 128
    shard_path(data.paths.shards, victim).write_bytes(raw)
    path.unlink()
    async with data.running() as node:
        row = await node.phase("failed")
        assert "cannot open" in row.error
        assert node.catalog.held(manifest.id) == _ids(manifest) - {victim}
        assert not shard_path(data.paths.shards, victim).exists()
        (condition,) = node.health.conditions()
        assert (condition.code, condition.subsystem) == ("model_incomplete", "AcquisitionManager")
        assert manifest.name in condition.text
        shutil.copy2(tiny, path)
        assert (await node.mailbox.ask(AcquireModel(str(path)))).id == manifest.id
        assert node.catalog.held(manifest.id) == _ids(manifest)
        assert node.health.conditions() == ()


@pytest.mark.parametrize("size", [0, 1000, -1])
async def test_a_truncated_shard_is_not_held_until_it_is_made_again(data, tiny, size):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
    victim = shard_path(data.paths.shards, manifest.shards[-1].id)
    good = victim.read_bytes()
    victim.write_bytes(good[:size])
    async with data.running() as node:
        await node.settled(manifest)
    assert victim.read_bytes() == good


async def test_a_deleted_shard_is_made_again(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
    shard_path(data.paths.shards, manifest.shards[0].id).unlink()
    async with data.running() as node:
        await node.settled(manifest)
        assert data.files("quarantine") == []


async def test_a_source_that_has_changed_repairs_nothing(data, tiny, tmp_path):
    path = shutil.copy2(tiny, tmp_path / "m.gguf")
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(path)))
    shard_path(data.paths.shards, manifest.shards[1].id).unlink()
    write_tiny_llama(path, blocks=3, seed=7)
    async with data.running() as node:
        assert "no longer what" in (await node.phase("failed")).error
        assert node.catalog.manifests() == (manifest,)


async def test_only_the_wanted_blocks_are_kept_and_more_can_follow(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny), BlockRange(0, 1)))
        kept = [(shard.kind, shard.block) for shard in manifest.shards if shard.id in node.catalog.held(manifest.id)]
        assert kept == [(ShardKind.TOKENIZER, None), (ShardKind.EMBEDDING, None), (ShardKind.BLOCK, 0)]
        assert len(data.files("shards")) == 3
    async with data.running() as node:
        await node.settled(manifest)
        assert await node.mailbox.ask(AcquireModel(str(tiny), BlockRange(0, 1))) == manifest
        assert len(data.files("shards")) == 3
        await node.mailbox.ask(AcquireModel(str(tiny), BlockRange(2, 3)))
        kept = [(shard.kind, shard.block) for shard in manifest.shards if shard.id in node.catalog.held(manifest.id)]
        assert kept[1:] == [
            (ShardKind.EMBEDDING, None),
            (ShardKind.BLOCK, 0),
            (ShardKind.BLOCK, 2),
            (ShardKind.HEAD, None),
        ]
        await node.mailbox.ask(AcquireModel(str(tiny)))
        assert node.catalog.held(manifest.id) == _ids(manifest)


async def test_embedding_and_head_can_be_kept_with_any_blocks(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny), BlockRange(1, 2), both_ends=True))
        kept = [(shard.kind, shard.block) for shard in manifest.shards if shard.id in node.catalog.held(manifest.id)]
        assert kept == [
            (ShardKind.TOKENIZER, None),
            (ShardKind.EMBEDDING, None),
            (ShardKind.BLOCK, 1),
            (ShardKind.HEAD, None),
        ]
        assert await node.mailbox.ask(AcquireModel(str(tiny), BlockRange(1, 2), both_ends=True)) == manifest


async def test_blocks_the_model_does_not_have_are_refused(data, tiny):
    async with data.running() as node:
        with pytest.raises(RequestError, match=r"blocks 0:3; 1:4 asks for more") as caught:
            await node.mailbox.ask(AcquireModel(str(tiny), BlockRange(1, 4)))
        assert caught.value.param == "blocks"
        assert node.catalog.manifests() == ()
        await node.mailbox.ask(AcquireModel(str(tiny)))
        with pytest.raises(RequestError, match="asks for more"):
            await node.mailbox.ask(AcquireModel(str(tiny), BlockRange(1, 4)))


async def test_removing_deletes_what_no_other_model_keeps(data, tiny, tmp_path):
    twin = write_tiny_llama(tmp_path / "twin.gguf", blocks=3, seed=1, name="Twin")
    async with data.running() as node:
        first = await node.mailbox.ask(AcquireModel(str(tiny)))
        second = await node.mailbox.ask(AcquireModel(str(twin)))
        assert first.shards[0].id == second.shards[0].id  # the same vocabulary: one tokenizer shard
        assert await node.mailbox.ask(RemoveModel(first.name)) == first
        assert node.catalog.manifests() == (second,)
        assert {path.stem for path in data.files("shards")} == _ids(second)
        assert node.catalog.held(second.id) == _ids(second)
        assert node.catalog.held(first.id) == frozenset()
        await node.mailbox.ask(RemoveModel("twin"))
        assert data.files("shards") == data.files("partial") == []
    async with data.running() as node:
        assert node.catalog.manifests() == ()


async def test_removing_takes_quarantined_copies_along(data, tiny):
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(tiny)))
    shard_path(data.paths.shards, manifest.shards[1].id).write_bytes(bytes(manifest.shards[1].nbytes))
    async with data.running() as node:
        await node.settled(manifest)
        assert len(data.files("quarantine")) == 1
        await node.mailbox.ask(RemoveModel(manifest.id))
        assert data.files("quarantine") == []


async def test_removing_an_unknown_model_names_what_there_is(data, tiny):
    async with data.running() as node:
        await node.mailbox.ask(AcquireModel(str(tiny)))
        with pytest.raises(UnknownModel, match="no model 'nobody'; models here: tiny-llama"):
            await node.mailbox.ask(RemoveModel("nobody"))


async def test_models_of_one_name_are_kept_apart(data, tiny, tmp_path):
    other = write_tiny_llama(tmp_path / "other.gguf", blocks=3, seed=5)
    async with data.running() as node:
        first = await node.mailbox.ask(AcquireModel(str(tiny)))
        second = await node.mailbox.ask(AcquireModel(str(other)))
        assert first.name == "tiny-llama"
        assert second.name == f"tiny-llama-{second.id[:6]}"
        assert node.catalog.resolve("tiny-llama") == first
        assert node.catalog.resolve(second.name) == second


async def test_a_file_with_other_weights_in_the_same_place_is_another_model(data, tiny, tmp_path):
    path = shutil.copy2(tiny, tmp_path / "m.gguf")
    async with data.running() as node:
        first = await node.mailbox.ask(AcquireModel(str(path)))
        write_tiny_llama(path, blocks=3, seed=9)
        second = await node.mailbox.ask(AcquireModel(str(path)))
        assert first.id != second.id
        assert {manifest.id for manifest in node.catalog.manifests()} == {first.id, second.id}
        assert node.catalog.by_reference(str(path)).manifest == second
        assert node.catalog.entry(first.id).origins == ()


async def test_one_model_from_two_places_is_one_model_with_two_origins(data, tiny, tmp_path):
    copy = shutil.copy2(tiny, tmp_path / "copy.gguf")
    async with data.running() as node:
        first = await node.mailbox.ask(AcquireModel(str(tiny)))
        second = await node.mailbox.ask(AcquireModel(str(copy)))
        assert first == second
        assert [o.reference for o in node.catalog.entry(first.id).origins] == [str(copy), str(tiny)]
    copy.unlink()
    shard_path(data.paths.shards, first.shards[0].id).unlink()
    async with data.running() as node:
        await node.settled(first)  # from the other place


async def test_two_askers_of_one_reference_get_one_import(data, tiny):
    answers = []

    async def ask():
        answers.append(await node.mailbox.ask(AcquireModel(str(tiny))))

    async with data.running() as node:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert len(set(answers)) == 1
        assert node.catalog.revision.value == 3  # put, held, and asked for, once


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("what-is-this", RequestError, "'what-is-this' is not a model reference; use starter"),
        ("/nowhere/model.gguf", SourceUnavailable, "cannot open /nowhere/model.gguf"),
        ("/nowhere/folder", SourceUnavailable, "no folder /nowhere/folder"),
    ],
)
async def test_references_that_lead_nowhere_are_refused(data, reference, error, words):
    async with data.running() as node:
        with pytest.raises(error, match=words):
            await node.mailbox.ask(AcquireModel(reference))
        (row,) = node.progress.value
        assert (row.phase, row.reference) == ("failed", reference)
        assert data.files("partial") == []


async def test_a_bad_file_is_refused_and_leaves_nothing(data, tiny, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[:-100])
    async with data.running() as node:
        with pytest.raises(InvalidModelFile, match="truncated"):
            await node.mailbox.ask(AcquireModel(str(path)))
        assert "truncated" in (await node.phase("failed")).error
        assert data.files(".") == []
        assert node.catalog.manifests() == ()


async def test_a_model_that_somebody_else_refuses_is_refused_before_a_byte_is_written(data, tiny):
    def examine(model):
        assert data.files(".") == []
        raise UnsupportedModel(f"no tokenizer for {model.tokenizer.pre}")

    data.sources = builtin_sources(
        Lanes(), offline=True, environment={}, downloads=data.paths.transfers, examine=examine
    )
    async with data.running() as node:
        with pytest.raises(UnsupportedModel, match="no tokenizer for gpt-2"):
            await node.mailbox.ask(AcquireModel(str(tiny)))
        assert data.files(".") == []


async def test_a_source_that_gives_something_else_under_the_same_version_changes_nothing(data, tiny, tmp_path):
    @attrs.frozen(eq=False)
    class Unversioned(LocalGGUF):
        async def look(self, reference):
            return Origin(reference, "always")

    data.sources = (Unversioned(),)
    path = shutil.copy2(tiny, tmp_path / "m.gguf")
    async with data.running() as node:
        manifest = await node.mailbox.ask(AcquireModel(str(path), BlockRange(0, 1)))
        write_tiny_llama(path, blocks=3, seed=7)
        with pytest.raises(SourceUnavailable, match="is no longer what tiny-llama was made from; remove it first"):
            await node.mailbox.ask(AcquireModel(str(path)))
        assert node.catalog.manifests() == (manifest,)
        assert len(data.files(".")) == 3


async def test_a_crash_in_a_source_fails_the_request_and_not_the_others(data, tiny):
    class Broken:
        def accepts(self, reference):
            return True

        def canonical(self, reference):
            return reference

        async def look(self, reference):
            raise ZeroDivisionError

    data.sources = (Broken(),)
    async with data.running() as node:
        with pytest.raises(FileError, match="internal error: ZeroDivisionError"):
            await node.mailbox.ask(AcquireModel("x"))
        with pytest.raises(UnknownModel):
            await node.mailbox.ask(RemoveModel("x"))


async def test_draining_refuses_new_work(data, tiny):
    async with data.running() as node:
        await node.manager.drain()
        with pytest.raises(Unavailable, match="stopping"):
            await node.mailbox.ask(AcquireModel(str(tiny)))
