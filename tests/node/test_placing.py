"""How much of the mesh's models this machine could serve, by what is free in its memory now."""

import attrs
import pytest
import trio
from support.stages import tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.config.paths import DataPaths
from meshnode.errors import SourceUnavailable
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress
from meshnode.files.catalog import CatalogEntry, open_catalog
from meshnode.files.sources import Origin
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.node import memory_plan
from meshnode.node.memory_plan import MemoryLimits, MemoryPlan
from meshnode.node.placing import CatalogModels, MailboxShards
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.types.blocks import BlockRange
from meshnode.types.footprint import resident_bytes
from meshnode.types.peers import Offering


@attrs.frozen
class Catalog:
    known: tuple = ()

    def manifests(self):
        return self.known

    def entry(self, model):
        return CatalogEntry(None, (), (Origin("hf:o/own", "1", "hf:o/own@abc"),)) if model == "m" else None


@attrs.frozen
class Entries:
    only: CatalogEntry | None

    def entry(self, _model):
        return self.only


def models_of(*known, plan=None, loaded=(), acquiring=()):
    plan = MemoryPlan() if plan is None else plan
    return CatalogModels(Catalog(known), plan, Latest(dict.fromkeys(loaded)), Latest(Offering()), Latest(acquiring))


@pytest.fixture
def free(monkeypatch, tmp_path):
    free = {"bytes": 1000 << 20}
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: free["bytes"])
    monkeypatch.setattr(memory_plan, "_NVIDIA", tmp_path / "none")
    return free


def test_memory_is_measured_when_it_is_asked_for_and_within_the_limit(free):
    models = models_of()
    assert models.loadable_bytes() == 800 << 20  # weights of four bits grow by a quarter
    free["bytes"] = 500 << 20
    assert models.loadable_bytes() == 400 << 20
    limited = models_of(plan=MemoryPlan(MemoryLimits(ram=100 << 20)))
    assert limited.loadable_bytes() == 80 << 20


def test_the_models_that_are_here_say_how_much_weights_grow_when_they_are_loaded(free, tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf", quantization="Q2_K"), tmp_path / "shards")
    models = models_of(manifest)
    resident = resident_bytes(manifest.shards, causal=True, on_gpu=False)
    assert models.loadable_bytes() == pytest.approx((1000 << 20) * manifest.nbytes / resident, rel=0.001)


def test_what_is_in_the_catalog_is_known_whether_it_has_been_verified_or_not(tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    models = models_of(manifest)
    assert models.known() == {manifest.id}


async def test_what_is_kept_is_said_until_it_has_been_verified(tmp_path, make_entry):
    store, entry = MemoryStore(), make_entry("tiny", kept=3)
    catalog = await open_catalog(store, DataPaths(tmp_path), Metrics(), {})
    await catalog.put(entry)
    assert attrs.evolve(models_of(), catalog=catalog).unchecked() == {}
    catalog = await open_catalog(store, DataPaths(tmp_path), Metrics(), {})
    models = attrs.evolve(models_of(), catalog=catalog)
    assert models.unchecked() == {entry.manifest.id: (BlockRange(0, 1),)}
    catalog.note_checked(entry.manifest.id)
    assert models.unchecked() == {}


def test_what_downloads_still_lack_is_known_and_those_of_its_own_can_be_left_out():
    models = models_of(
        acquiring=(
            AcquisitionProgress("hf:o/r", "downloading", 30, 100),
            AcquisitionProgress("mesh:m", "downloading", 5, 10),
            AcquisitionProgress("hf:o/own@abc", "downloading", 1, 2),  # what nobody has any more
            AcquisitionProgress("starter", "done", 7, 7),
            AcquisitionProgress("/tmp/x.gguf", "importing", 1, 4),
            AcquisitionProgress("hf:o/unknown", "downloading", 9, 0),
            AcquisitionProgress("hf:o/failed", "failed", error="gone"),
        )
    )
    assert models.awaited_bytes(frozenset()) == 70 + 5 + 1 + 3
    assert models.awaited_bytes({"m"}) == 70 + 3


def test_what_is_loaded_is_told(free):
    assert models_of(loaded=("m",)).loaded() == {"m"}


@pytest.mark.parametrize(
    ("origins", "may", "reference"),
    [
        ((Origin("hf:o/r:Q4_K_M", "1", "hf:o/r:Q4_K_M@abc"), Origin("mesh:m", "m")), True, "hf:o/r:Q4_K_M@abc"),
        ((Origin("mesh:m", "m"), Origin("hf:o/r", "1")), True, "hf:o/r"),
        ((Origin("hf:o/r", "1"),), False, None),
        ((Origin("mesh:m", "m"), Origin("/tmp/m.gguf", "2")), True, None),
        (None, True, None),
    ],
)
async def test_only_a_hub_is_asked_for_what_nobody_has_and_for_the_bytes_that_the_model_was_made_from(
    origins, may, reference
):
    mailbox, blocks = Mailbox("acquisitions", 1), BlockRange(2, 4)
    shards = MailboxShards(mailbox, Entries(None if origins is None else CatalogEntry(None, (), origins)), may)
    assert shards.comes_from_outside("m") is (reference is not None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shards.acquire, "m", blocks)
        with mailbox.serve() as letters:
            letter = await anext(letters)
            assert letter.question == AcquireModel("mesh:m", blocks, unasked=True, may_prove=may)
            letter.answer(None)
    if reference is None:
        with pytest.raises(SourceUnavailable, match="not known"):
            await shards.acquire_from_outside("m", blocks)
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shards.acquire_from_outside, "m", blocks)
        with mailbox.serve() as letters:
            letter = await anext(letters)
            assert letter.question == AcquireModel(reference, blocks, unasked=True)
            letter.answer(None)
