"""How much of the mesh's models this machine could serve, by what is free in its memory now."""

import attrs
import pytest
from support.stages import tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.flow.latest import Latest
from meshnode.node import memory_plan
from meshnode.node.memory_plan import MemoryLimits, MemoryPlan
from meshnode.node.placing import CatalogModels
from meshnode.types.footprint import resident_bytes
from meshnode.types.peers import Offering


@attrs.frozen
class Catalog:
    known: tuple = ()

    def manifests(self):
        return self.known


@pytest.fixture
def free(monkeypatch, tmp_path):
    free = {"bytes": 1000 << 20}
    monkeypatch.setattr(memory_plan, "available_bytes", lambda: free["bytes"])
    monkeypatch.setattr(memory_plan, "_NVIDIA", tmp_path / "none")
    return free


def test_memory_is_measured_when_it_is_asked_for_and_within_the_limit(free):
    models = CatalogModels(Catalog(), MemoryPlan(), Latest({}), Latest(Offering()))
    assert models.loadable_bytes() == 800 << 20  # weights of four bits grow by a quarter
    free["bytes"] = 500 << 20
    assert models.loadable_bytes() == 400 << 20
    limited = CatalogModels(Catalog(), MemoryPlan(MemoryLimits(ram=100 << 20)), Latest({}), Latest(Offering()))
    assert limited.loadable_bytes() == 80 << 20


def test_the_models_that_are_here_say_how_much_weights_grow_when_they_are_loaded(free, tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf", quantization="Q2_K"), tmp_path / "shards")
    models = CatalogModels(Catalog((manifest,)), MemoryPlan(), Latest({}), Latest(Offering()))
    resident = resident_bytes(manifest.shards, causal=True, on_gpu=False)
    assert models.loadable_bytes() == pytest.approx((1000 << 20) * manifest.nbytes / resident, rel=0.001)


def test_what_is_in_the_catalog_is_known_whether_it_has_been_verified_or_not(tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    models = CatalogModels(Catalog((manifest,)), MemoryPlan(), Latest({}), Latest(Offering()))
    assert models.known() == {manifest.id}


def test_what_is_loaded_is_told(free):
    assert CatalogModels(Catalog(), MemoryPlan(), Latest({"m": object()}), Latest(Offering())).loaded() == {"m"}
