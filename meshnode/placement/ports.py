"""What placement needs of others."""

from collections.abc import Iterable, Mapping, Set
from typing import Protocol

import attrs

from meshnode.flow.latest import Latest
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, ShardId
from meshnode.types.peers import Holding, PeerInfo, StageOffer

__all__ = ["Entrusted", "MeshMembers", "OtherHolders", "OwnModels", "Shards"]


@attrs.frozen
class Entrusted:
    """A share of a model that this node has made for somebody, and is to hold."""

    model: ModelId
    blocks: BlockRange
    block_count: int  # of the whole model
    made: frozenset[ShardId]  # some of its shards, that lie here and are not held yet
    nbytes: int  # of these


class MeshMembers(Protocol):
    """Who is out there."""

    def peers(self) -> Iterable[PeerInfo]:
        """Return all peers."""
        ...


class OtherHolders(Protocol):
    """Those who have said by gossip, some time ago, that they hold something."""

    async def keeps(self, peer: PeerId, model: ModelId, blocks: BlockRange) -> bool:
        """Ask a peer whether it holds blocks now and is not about to let them go. Raises MeshnodeError leafs."""
        ...


class OwnModels(Protocol):
    """What this node has."""

    @property
    def revision(self) -> Latest[int]:
        """Grows with every change of what is here."""
        ...

    def holdings(self) -> tuple[Holding, ...]:
        """Return what is here, verified."""
        ...

    def known(self) -> frozenset[ModelId]:
        """Return the models of which something is kept here, verified or not."""
        ...

    def unchecked(self) -> Mapping[ModelId, tuple[BlockRange, ...]]:
        """Return what is kept of the models that are still being verified since the start: it may be here, or damaged."""
        ...

    def pinned(self) -> frozenset[ModelId]:
        """Return the models that a person wants here, also those that were fetched before without anybody asking."""
        ...

    def stages(self) -> tuple[StageOffer, ...]:
        """Return what is loaded, and how fast it runs."""
        ...

    def free_bytes(self) -> int:
        """Return the free bytes of the disk that shards lie on."""
        ...

    def awaited_bytes(self, besides: Set[ModelId]) -> int:
        """Return how many bytes the downloads under way still lack; what the node began itself of `besides` is left out."""
        ...

    def loaded(self) -> frozenset[ModelId]:
        """Return the models whose weights are in memory, or about to be."""
        ...

    def loadable_bytes(self) -> int:
        """Return how many bytes of further shards the free memory would hold, loaded; measured now."""
        ...


class Shards(Protocol):
    """Gets shards and lets them go."""

    async def acquire(self, model: ModelId, blocks: BlockRange) -> None:
        """Fetch blocks from peers. Raises MeshnodeError leafs; cancellation keeps what has come."""
        ...

    async def keep(self, share: Entrusted, room: int) -> None:
        """Hold a share, for which there is `room` bytes; what lacks comes from peers.

        Raises as `acquire`, and Unavailable, before anything is fetched, for one that takes more or was not made here.
        """
        ...

    def comes_from_outside(self, model: ModelId) -> bool:
        """Whether it is known here where a model came from, and this node may ask there of its own accord."""
        ...

    async def acquire_from_outside(self, model: ModelId, blocks: BlockRange) -> None:
        """Fetch blocks from where the model came from. Raises and keeps as `acquire`."""
        ...

    async def drop(self, model: ModelId, blocks: BlockRange) -> None:
        """Let blocks go. Raises MeshnodeError leafs."""
        ...
