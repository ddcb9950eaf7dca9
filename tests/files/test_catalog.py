"""Names, prefixes and aliases of models, and what survives in the store."""

import attrs
import msgspec
import pytest

from meshnode.errors import FileError, StoreError, UnknownModel
from meshnode.files.catalog import CatalogEntry, ModelCatalog, open_catalog
from meshnode.files.manifests import build_manifest
from meshnode.files.sources import Origin
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.types.ids import ShardId
from meshnode.types.manifest import ModelConfig, ModelManifest, RopeStyle, ShardDescriptor, ShardKind, TensorDescriptor


def manifest(name: str, hidden: int = 64) -> ModelManifest:
    """A manifest without files; `hidden` makes it another model."""
    config = ModelConfig(
        "llama", 1, hidden, 128, 4, 2, 16, 320, 512, 1e-5, 10000.0, 16, RopeStyle.INTERLEAVED, rope_factors=(1.0, 2.0)
    )
    tensors = (TensorDescriptor("blk.0.attn_q.weight", "Q4_0", (64, hidden), 2304),)
    shards = (
        ShardDescriptor(ShardId("aa" * 32), ShardKind.TOKENIZER, None, 100, ("bb" * 32,), ()),
        ShardDescriptor(ShardId(f"{hidden:064x}"), ShardKind.BLOCK, 0, 2500, ("cc" * 32,), tensors),
    )
    return build_manifest(name, config, shards)


def entry(name: str, hidden: int = 64, **changes) -> CatalogEntry:
    made = manifest(name, hidden)
    return CatalogEntry(made, tuple(shard.id for shard in made.shards), **changes)


async def _open(data, store=None, aliases=None) -> ModelCatalog:
    return await open_catalog(store or data.store, data.paths, Metrics(), aliases or {})


async def test_models_answer_to_id_name_alias_and_unique_beginnings(data):
    catalog = await _open(data, aliases={"mine": "tiny-chat", "gone": "nothing"})
    chat, code = entry("tiny-chat", aliases=("starter",)), entry("tiny-code", hidden=128)
    await catalog.put(chat)
    await catalog.put(code)
    for name in (chat.manifest.id, chat.manifest.id[:8], "tiny-chat", "tiny-ch", "starter", "mine"):
        assert catalog.resolve(name) == chat.manifest, name
    assert catalog.resolve("tiny-co") == code.manifest
    with pytest.raises(UnknownModel, match="'tiny' is ambiguous: tiny-chat, tiny-code") as caught:
        catalog.resolve("tiny")
    assert caught.value.param == "model"
    for name in ("nobody", "", "gone", chat.manifest.id[:2]):
        with pytest.raises(UnknownModel, match=r"models here: tiny-chat \(.+\), tiny-code"):
            catalog.resolve(name)


async def test_a_name_with_ollamas_tag_is_the_name_unless_a_model_is_called_so(data):
    catalog = await _open(data, aliases={"mine": "tiny-chat"})
    chat, tagged = entry("tiny-chat", aliases=("starter",)), entry("code:latest", hidden=128)
    await catalog.put(chat)
    await catalog.put(tagged)
    for name in ("tiny-chat:latest", "starter:latest", "mine:latest", "tiny-ch:latest"):
        assert catalog.resolve(name) == chat.manifest, name
    assert catalog.resolve("code:latest") == tagged.manifest
    for name in ("tiny-chat:135m", ":latest"):
        with pytest.raises(UnknownModel, match="models here"):
            catalog.resolve(name)


async def test_aliases_of_the_settings_may_stand_for_any_name_of_a_model(data):
    catalog = await _open(data, aliases={"gpt-4o-mini": "starter", "claude": "tiny-chat", "starter": "starter"})
    chat = entry("tiny-chat", aliases=("starter",))
    await catalog.put(chat)
    assert catalog.resolve("gpt-4o-mini") == catalog.resolve("claude") == chat.manifest
    assert catalog.aliases(chat.manifest.id) == ("starter", "gpt-4o-mini", "claude")


async def test_an_exact_name_wins_over_a_longer_one(data):
    catalog = await _open(data)
    short, long = entry("tiny"), entry("tiny-chat", hidden=128)
    await catalog.put(long)
    await catalog.put(short)
    assert catalog.resolve("tiny") == short.manifest


async def test_an_empty_catalog_says_so(data):
    with pytest.raises(UnknownModel, match="models here: none yet"):
        (await _open(data)).resolve("x")


async def test_entries_survive_in_the_store_and_held_shards_do_not(data):
    catalog = await _open(data)
    made = entry("tiny", aliases=("a", "b"), origins=(Origin("starter", "v1"),))
    await catalog.put(made)
    catalog.mark_held(made.manifest.shards)
    assert catalog.held(made.manifest.id) == set(made.wanted)
    again = await _open(data)
    assert again.entries() == (made,)
    assert again.held(made.manifest.id) == frozenset()


async def test_an_entry_of_an_older_version_is_read(data):
    catalog = await _open(data)
    made = entry("tiny", origins=(Origin("hf:a/b", "v1"),))
    row = msgspec.to_builtins(made)
    del row["origins"][0]["pinned"]
    batch = data.store.batch()
    batch.put(b"models/" + made.manifest.id.encode(), msgspec.msgpack.encode(row))
    await data.store.commit(batch)
    assert (await _open(data)).entries() == (made,)
    assert catalog.by_bytes(Origin("hf:a/b:Q8_0", "v1", "hf:a/b:Q8_0@1")) is None, "which commit it was is not known"


async def test_a_reference_and_an_alias_belong_to_whoever_claimed_them_last(data):
    catalog = await _open(data)
    first = entry("one", aliases=("starter", "x"), origins=(Origin("/m.gguf", "1"), Origin("starter", "1")))
    second = entry("two", hidden=128, aliases=("starter",), origins=(Origin("/m.gguf", "2"),))
    await catalog.put(first)
    await catalog.put(second)
    for current in (catalog, await _open(data)):
        assert current.entry(first.manifest.id) == attrs.evolve(
            first, aliases=("x",), origins=(Origin("starter", "1"),)
        )
        assert current.by_reference("/m.gguf") == second
        assert current.resolve("starter") == second.manifest


@pytest.mark.parametrize("besides", [(), (Origin("hf:a/b@1", "1", "hf:a/b@1"),)])
async def test_a_version_that_is_no_longer_the_newest_keeps_where_it_will_always_be(data, besides):
    catalog = await _open(data)
    named, file = Origin("hf:a/b", "1", "hf:a/b@1"), Origin("/m.gguf", "1")
    first = entry("one", origins=(named, *besides, file))
    newer = entry("two", hidden=128, origins=(Origin("hf:a/b", "2", "hf:a/b@2"),))
    await catalog.put(first)
    await catalog.put(newer)
    assert catalog.entry(first.manifest.id).origins == (Origin("hf:a/b@1", "1", "hf:a/b@1"), file)
    assert catalog.by_reference("hf:a/b") == newer
    assert catalog.by_reference("hf:a/b@1").manifest == first.manifest


async def test_a_name_in_use_gets_the_beginning_of_the_id(data):
    catalog = await _open(data)
    made = entry("tiny", aliases=("other",))
    await catalog.put(made)
    new = manifest("tiny", 128).id
    assert catalog.free_name("tiny", new) == f"tiny-{new[:6]}"
    assert catalog.free_name("other", new) == f"other-{new[:6]}"
    assert catalog.free_name("free", new) == "free"
    assert catalog.free_name("tiny", made.manifest.id) == "tiny"


async def test_shards_of_several_models_stay_until_the_last_is_removed(data):
    catalog = await _open(data)
    first, second = entry("one"), entry("two", hidden=128)
    await catalog.put(first)
    await catalog.put(second)
    catalog.mark_held([*first.manifest.shards, *second.manifest.shards])
    assert catalog.only_wanted_by(first.manifest.id) == (first.wanted[1],)
    await catalog.remove(first.manifest.id)
    assert catalog.held(second.manifest.id) == set(second.wanted)
    assert catalog.only_wanted_by(second.manifest.id) == second.wanted
    assert catalog.held(first.manifest.id) == frozenset()


async def test_every_change_raises_the_revision(data):
    catalog = await _open(data)
    made, seen = entry("tiny"), [catalog.revision.value]
    await catalog.put(made)
    seen.append(catalog.revision.value)
    catalog.mark_held(made.manifest.shards)
    seen.append(catalog.revision.value)
    await catalog.remove(made.manifest.id)
    seen.append(catalog.revision.value)
    assert seen == sorted(set(seen))


async def test_a_failed_write_changes_nothing(data):
    class Failing(MemoryStore):
        async def commit(self, batch, *, sync=False):
            if self.get(b"models/" + made.manifest.id.encode()) is not None:
                raise StoreError("the disk is full")
            await super().commit(batch, sync=sync)

    made = entry("tiny", aliases=("starter",))
    catalog = await _open(data, Failing())
    await catalog.put(made)
    revision = catalog.revision.value
    with pytest.raises(StoreError):
        await catalog.put(entry("two", hidden=128, aliases=("starter",)))
    with pytest.raises(StoreError):
        await catalog.remove(made.manifest.id)
    assert catalog.entries() == (made,)
    assert catalog.revision.value == revision


async def test_paths_are_made_of_shard_ids_only(data):
    catalog = await _open(data)
    assert catalog.path(ShardId("ab" * 32)) == data.paths.shards / "ab" / f"{'ab' * 32}.shard"
    for bad in ("../../etc/passwd", "AB" * 32, "ab" * 31, ""):
        with pytest.raises(FileError, match="not a shard id"):
            catalog.path(ShardId(bad))
