"""What fetching shards from peers needs of the network."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from meshnode.files.sources import ReportBytes
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, ShardId
from meshnode.types.manifest import ShardDescriptor, ShardKind
from meshnode.types.model_names import ModelNames

__all__ = ["ChunkLine", "PeerShards", "holders_of"]


class ChunkLine(Protocol):
    """A connection to one peer; after an error it is of no use. Methods raise PeerError leafs, or what the peer refuses with."""

    async def manifest(self, model: ModelId) -> bytes:
        """Return a manifest in msgpack, as the peer has it."""
        ...

    async def make_share(self, share: bytes, report: ReportBytes) -> bytes:
        """Have the peer make a share of a model, and return what its shards hash to; see meshnode.files.hub_shares."""
        ...

    async def keep_share(self, model: ModelId, blocks: BlockRange, block_count: int) -> None:
        """Have the peer keep the share it made, now that its model is known."""
        ...

    async def fetch(self, shard: ShardId, first: int, count: int, take: Callable[[int, bytes], None]) -> None:
        """Fetch chunks in order; `take` gets number and bytes of each in a thread, and what it raises ends the fetching."""
        ...


class PeerShards(Protocol):
    """The peers that hold shards, as far as they say so."""

    def models(self) -> tuple[ModelNames, ...]:
        """Return what peers hold, whole or in part."""
        ...

    def of_repository(self, repository: str) -> frozenset[ModelId]:
        """Return the models that peers say they have from a repository of a hub."""
        ...

    def holders(
        self, model: ModelId, block: int | None, *, embedding: bool = False, head: bool = False
    ) -> frozenset[PeerId]:
        """Return who holds a block, or an end, or (with none of them) anything of a model."""
        ...

    def helpers(self) -> Mapping[PeerId, int]:
        """Return who gives room for parts of models, and how many bytes more."""
        ...

    def line(self, peer: PeerId) -> AbstractAsyncContextManager[ChunkLine]:
        """Connect to a peer. Raises PeerUnreachable and PeerRefused on entry."""
        ...

    def accuse(self, peer: PeerId, what: str) -> None:
        """Hold against a peer that it sent other bytes than the manifest says."""
        ...


def holders_of(peers: PeerShards, model: ModelId, shard: ShardDescriptor) -> frozenset[PeerId]:
    """Return who holds a shard of a model; whoever has anything of it has the tokenizer."""
    is_embedding, is_head = shard.kind is ShardKind.EMBEDDING, shard.kind is ShardKind.HEAD
    return peers.holders(model, shard.block, embedding=is_embedding, head=is_head)
