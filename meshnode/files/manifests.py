"""Makes manifests.

A manifest's id is the BLAKE3 of the canonical bytes (`meshnode.files.canonical`) of the array
["meshnode-manifest", 1, config, shards]. Name, licence and origin are for people and not part of it: whoever imports the same
weights, under whatever name, gets the same id.
"""

import re
from collections import Counter
from collections.abc import Iterable

from blake3 import blake3

from meshnode.files.canonical import canonical_bytes
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelConfig, ModelManifest, ShardDescriptor, ShardKind

__all__ = ["build_manifest", "manifest_id", "name_from_title"]

_MAX_NAME = 80


def manifest_id(config: ModelConfig, shards: tuple[ShardDescriptor, ...]) -> ModelId:
    """Return the id of the model with this configuration and these shards."""
    return ModelId(blake3(canonical_bytes(["meshnode-manifest", 1, config, shards])).hexdigest())


def build_manifest(
    name: str,
    config: ModelConfig,
    shards: tuple[ShardDescriptor, ...],
    *,
    license_name: str | None = None,
    source: str | None = None,
) -> ModelManifest:
    """Make the manifest of these shards."""
    return ModelManifest(
        id=manifest_id(config, shards),
        name=name,
        config=config,
        shards=shards,
        quantization=_quantization(shards),
        license=license_name,
        source=source,
    )


def name_from_title(title: str) -> str:
    """Turn a model's title into the name users type: lower case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", title[:400].lower())[:_MAX_NAME].strip("-.") or "model"


def _quantization(shards: Iterable[ShardDescriptor]) -> str:
    """Return the type most matrices of the blocks have; of equally many the first in the alphabet."""
    counts = Counter(
        tensor.ggml_type
        for shard in shards
        if shard.kind is ShardKind.BLOCK
        for tensor in shard.tensors
        if len(tensor.shape) > 1
    )
    return min(counts, key=lambda kind: (-counts[kind], kind))
