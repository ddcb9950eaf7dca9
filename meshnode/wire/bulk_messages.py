"""What nodes say to each other on bulk links: manifests and chunks of shards, asked for by one side and given by the other."""

from typing import Annotated

import msgspec

from meshnode.types.ids import ModelId, ShardId
from meshnode.wire.failures import Failed

__all__ = ["MAX_RUN", "BulkMessage", "Chunk", "ChunksWanted", "ManifestGiven", "ManifestWanted"]

MAX_RUN = 64
"""Chunks in one question."""


class ManifestWanted(msgspec.Struct, frozen=True, tag="manifest_wanted"):
    """Ask for the manifest of a model. Answered with ManifestGiven or Failed."""

    model: Annotated[ModelId, msgspec.Meta(min_length=64, max_length=64)]


class ManifestGiven(msgspec.Struct, frozen=True, tag="manifest"):
    """A manifest, msgpack, in the frame's body. True only if it hashes to the id that was asked for."""


class ChunksWanted(msgspec.Struct, frozen=True, tag="chunks_wanted", gc=False):
    """Ask for consecutive chunks of a shard. Answered with a Chunk each, in order, or by Failed in the place of one."""

    shard: Annotated[ShardId, msgspec.Meta(min_length=64, max_length=64)]
    first: Annotated[int, msgspec.Meta(ge=0)]
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_RUN)]


class Chunk(msgspec.Struct, frozen=True, tag="chunk", gc=False):
    """One chunk, types.manifest.CHUNK_BYTES long but for the last of a shard; its bytes are the frame's body."""

    number: int


BulkMessage = ManifestWanted | ManifestGiven | ChunksWanted | Chunk | Failed
