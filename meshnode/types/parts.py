"""Which parts of a model, for people: the embedding, blocks, the head."""

from collections.abc import Container, Iterable
from typing import Self

import attrs

from meshnode.types.blocks import runs_of
from meshnode.types.ids import ShardId
from meshnode.types.manifest import ModelManifest, ShardDescriptor, ShardKind

__all__ = ["Added", "Parts"]


@attrs.frozen
class Parts:
    """Some parts of one model, as `the embedding, blocks 0:3, 5:6, the head`."""

    blocks: frozenset[int] = frozenset()
    others: frozenset[ShardKind] = frozenset()  # what is no block

    @classmethod
    def of(cls, shards: Iterable[ShardDescriptor]) -> Self:
        """Return what shards are."""
        places = [(shard.kind, shard.block) for shard in shards]
        blocks = frozenset(block for _, block in places if block is not None)
        return cls(blocks, frozenset(kind for kind, block in places if block is None))

    def __bool__(self) -> bool:
        return bool(self.blocks or self.others)

    def __sub__(self, other: "Parts") -> "Parts":
        return Parts(self.blocks - other.blocks, self.others - other.others)

    def __str__(self) -> str:
        first = [f"the {kind.value}" for kind in (ShardKind.TOKENIZER, ShardKind.EMBEDDING) if kind in self.others]
        blocks = [f"blocks {', '.join(map(str, runs_of(self.blocks)))}"] if self.blocks else []
        return ", ".join([*first, *blocks, *(["the head"] if ShardKind.HEAD in self.others else [])])


@attrs.frozen
class Added:
    """A model that was added, and how much of it is here, written for people."""

    name: str
    here: str
    missing: str  # empty: all of it is here

    @classmethod
    def of(cls, manifest: ModelManifest, held: Container[ShardId]) -> Self:
        """Describe a model of which some shards are held."""
        here = Parts.of(shard for shard in manifest.shards if shard.id in held)
        return cls(manifest.name, str(here), str(Parts.of(manifest.shards) - here))
