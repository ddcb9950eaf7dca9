"""What this node says it has on disk."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import attrs

from meshnode.flow.latest import Latest
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, ShardId
from meshnode.types.manifest import ModelManifest, ShardKind
from meshnode.types.peers import Holding, Room

__all__ = ["Holdings", "described", "keeps", "ranges", "told"]

_MAX_TOLD = 64  # models in one offer


class Holdings(Protocol):
    """What this node has of models; the catalog."""

    @property
    def revision(self) -> Latest[int]:
        """Grows with every change."""
        ...

    def manifests(self) -> tuple[ModelManifest, ...]:
        """Return all models that are known here."""
        ...

    def aliases(self, model: ModelId) -> tuple[str, ...]:
        """Return a model's further names."""
        ...

    def held(self, model: ModelId) -> frozenset[ShardId]:
        """Return a model's verified shards."""
        ...


def described(holdings: Holdings) -> tuple[Holding, ...]:
    """Return the models of which there are weights here, in the order of their names."""
    every = (_holding(holdings, manifest) for manifest in holdings.manifests())
    return tuple(holding for holding in every if holding.nbytes)


def told(holdings: Holdings | None, room: Room | None, *, shares: bool) -> tuple[tuple[Holding, ...], Room | None]:
    """Return what others are told, a bounded number of models; the bytes of the rest are taken off the room they see.

    Who shares nothing tells what its callers want, and no more.
    """
    if not shares:
        return (), None if room is None else attrs.evolve(room, budget=0, fetching=(), coming=0)
    every = () if holdings is None else described(holdings)
    untold = sum(holding.nbytes for holding in every[_MAX_TOLD:])
    seen = None if room is None else attrs.evolve(room, budget=max(0, room.budget - untold))
    return every[:_MAX_TOLD], seen


def keeps(holdings: Holdings | None, model: ModelId, blocks: BlockRange) -> bool:
    """Return whether blocks of a model, and an end with the block at it, are here and verified."""
    every = () if holdings is None else described(holdings)
    return any(
        each.model == model
        and all(each.has(block) for block in blocks)
        and (each.embedding or blocks.start > 0)
        and (each.head or blocks.end < each.block_count)
        for each in every
    )


def _holding(holdings: Holdings, manifest: ModelManifest) -> Holding:
    held = holdings.held(manifest.id)
    weights = [shard for shard in manifest.shards if shard.id in held and shard.kind is not ShardKind.TOKENIZER]
    kinds = {shard.kind for shard in weights}
    return Holding(
        manifest.id,
        manifest.name,
        manifest.config.block_count,
        ranges(shard.block for shard in weights if shard.block is not None),
        embedding=ShardKind.EMBEDDING in kinds,
        head=ShardKind.HEAD in kinds,
        nbytes=sum(shard.nbytes for shard in weights),
        aliases=holdings.aliases(manifest.id)[:4],
        repository=manifest.repository,
    )


def ranges(blocks: Iterable[int]) -> tuple[BlockRange, ...]:
    """Return blocks as ranges, in ascending order."""
    return tuple(_ranges(sorted(blocks)))


def _ranges(blocks: list[int]) -> Iterator[BlockRange]:
    start = None
    for at, block in enumerate(blocks):
        start = block if start is None else start
        if at + 1 == len(blocks) or blocks[at + 1] != block + 1:
            yield BlockRange(start, block + 1)
            start = None
