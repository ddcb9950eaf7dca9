"""What nodes say to each other on bulk links: manifests and chunks of shards, asked for by one side and given by the other.

Besides, shares of models that several nodes fetch together from outside.
"""

from typing import Annotated

import msgspec

from meshnode.types.ids import ModelId, ShardId
from meshnode.wire.failures import Failed

__all__ = [
    "MAX_RUN",
    "BulkMessage",
    "Chunk",
    "ChunksWanted",
    "KeepShare",
    "ManifestGiven",
    "ManifestWanted",
    "ShareKept",
    "ShareMade",
    "ShareProgress",
    "ShareWanted",
]

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


class ShareWanted(msgspec.Struct, frozen=True, tag="share_wanted"):
    """Ask for a share of a model from a hub to be made; meshnode.files.hub_shares.HubShare, msgpack, is the frame's body.

    Answered with ShareProgress every few seconds, then ShareMade or Failed.
    """


class ShareProgress(msgspec.Struct, frozen=True, tag="share_progress"):
    """How much of what a share is made of has come."""

    done: Annotated[int, msgspec.Meta(ge=0)]  # bytes
    total: Annotated[int, msgspec.Meta(ge=0)]


class ShareMade(msgspec.Struct, frozen=True, tag="share_made"):
    """A share is made; what its shards hash to, msgpack, is in the frame's body. Nobody but the maker has seen them yet."""


class KeepShare(msgspec.Struct, frozen=True, tag="keep_share"):
    """Ask for what was made to be kept as blocks `start` to `end` (exclusive) of a model, whose manifest others now have.

    Answered with ShareProgress every few seconds, then ShareKept or Failed.
    """

    model: Annotated[ModelId, msgspec.Meta(min_length=64, max_length=64)]
    start: Annotated[int, msgspec.Meta(ge=0)]
    end: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    block_count: Annotated[int, msgspec.Meta(ge=1, le=4096)]  # of the whole model


class ShareKept(msgspec.Struct, frozen=True, tag="share_kept"):
    """It is kept."""


BulkMessage = (
    ManifestWanted
    | ManifestGiven
    | ChunksWanted
    | Chunk
    | ShareWanted
    | ShareProgress
    | ShareMade
    | KeepShare
    | ShareKept
    | Failed
)
