"""What can be asked of the AcquisitionManager, and what it says of its progress."""

from typing import Literal

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, ShardId

__all__ = [
    "AcquireModel",
    "AcquisitionProgress",
    "DropBlocks",
    "ExportModel",
    "Phase",
    "Question",
    "RemoveModel",
    "Terms",
]

Phase = Literal["downloading", "importing", "verifying", "done", "failed"]


@attrs.frozen
class Terms:
    """What has to be true of a part of a model that peers have, or nothing of it is fetched."""

    made: frozenset[ShardId]  # of which some are shards of that part
    room: int  # bytes that it takes at most, besides what is held


@attrs.frozen
class AcquireModel:
    """Get a model, or more blocks of one that is partly here. The answer is its manifest, once all of it is held."""

    reference: str  # "starter", hf:OWNER/REPO, a path of a GGUF file or of a checkpoint's folder, or a peer's model
    blocks: BlockRange | None = None  # keep only these blocks' shards and the tokenizer; None: all
    both_ends: bool = False  # and embedding and head, whichever blocks
    spread: bool = False  # of a hub: fetched by all who give room, each a share of it
    unasked: bool = False  # of the node's own accord: no person wants it here
    may_prove: bool = False  # a hub may be asked whether it has the same, though no person wants it here
    terms: Terms | None = None  # of a model that peers have, named by PREFIX; None: whatever it is


@attrs.frozen
class RemoveModel:
    """Forget a model and delete its shards, except those that other models keep. The answer is its manifest."""

    name: str  # as CatalogView.resolve understands it


@attrs.frozen
class DropBlocks:
    """Let go some blocks of a model that no person asked for here, with the embedding or the head where they go with them.

    The answer is the model's manifest.
    """

    model: ModelId
    blocks: BlockRange


@attrs.frozen
class ExportModel:
    """Write what is held of a model into a folder. The answer is its manifest."""

    name: str  # as CatalogView.resolve understands it
    folder: str  # absolute


Question = AcquireModel | RemoveModel | DropBlocks | ExportModel


@attrs.frozen
class AcquisitionProgress:
    """How far an acquisition is."""

    reference: str
    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0  # 0: unknown
    error: str | None = None  # why it failed
