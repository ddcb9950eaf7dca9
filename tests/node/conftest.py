"""A catalog of small models that exist on paper only."""

import hashlib

import pytest

from meshnode.config.paths import DataPaths
from meshnode.files.catalog import CatalogEntry, open_catalog
from meshnode.files.sources import Origin
from meshnode.observe.metrics import Metrics
from meshnode.store import MemoryStore
from meshnode.types.ids import ModelId, ShardId
from meshnode.types.manifest import ModelConfig, ModelManifest, RopeStyle, ShardDescriptor, ShardKind

CONFIG = ModelConfig(
    architecture="llama",
    block_count=2,
    hidden_size=8,
    feed_forward_size=16,
    head_count=2,
    kv_head_count=1,
    head_size=4,
    vocabulary_size=32,
    context_length=2048,
    norm_epsilon=1e-5,
    rope_base=10000.0,
    rope_size=4,
    rope_style=RopeStyle.INTERLEAVED,
)
KINDS = (
    (ShardKind.TOKENIZER, None),
    (ShardKind.EMBEDDING, None),
    (ShardKind.BLOCK, 0),
    (ShardKind.BLOCK, 1),
    (ShardKind.HEAD, None),
)


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
async def catalog(tmp_path):
    return await open_catalog(MemoryStore(), DataPaths(tmp_path), Metrics(), {"short": "tiny"})


@pytest.fixture
def make_entry():
    """Return a factory of catalog entries; `kept` is how many of the five shards this node keeps."""

    def make(name, *, kept=5, reference=None):
        shards = tuple(
            ShardDescriptor(ShardId(_hash(f"{name} {kind.value} {block}")), kind, block, 10, ("00",), ())
            for kind, block in KINDS
        )
        manifest = ModelManifest(ModelId(_hash(name)), name, CONFIG, shards, "Q4_0")
        origins = () if reference is None else (Origin(reference, "1"),)
        return CatalogEntry(manifest, tuple(shard.id for shard in shards[:kept]), origins)

    return make
