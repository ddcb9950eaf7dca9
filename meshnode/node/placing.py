"""Connects the AutoShardManager to the catalog, the network and the disk."""

import shutil
from collections.abc import Collection, Set
from pathlib import Path

import attrs

from meshnode.errors import SourceUnavailable
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress, DropBlocks, Question, Terms
from meshnode.files.catalog import ModelCatalog
from meshnode.files.hub_reference import HUB_PREFIX
from meshnode.files.peer_copies import PREFIX
from meshnode.files.shard_file import HashedBytes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.models import LoadedModel
from meshnode.network.holdings import described, ranges
from meshnode.node.memory_plan import MemoryPlan
from meshnode.placement.ports import Entrusted
from meshnode.types.blocks import BlockRange
from meshnode.types.footprint import resident_bytes
from meshnode.types.ids import ModelId, short
from meshnode.types.manifest import ModelManifest
from meshnode.types.peers import Holding, Offering, Room, StageOffer

__all__ = ["CatalogModels", "EntrustedShares", "MailboxShards"]

_USUAL_GROWTH = 1.25  # of 4-bit weights with 4-bit scales, on a CPU
_LEAST_GROWTH = 0.25  # float32 on the disk is half of that in memory; less than this would be a model without blocks


@attrs.frozen(eq=False)
class CatalogModels:
    """What is on the disk and in memory, and how much room there is in either."""

    catalog: ModelCatalog
    plan: MemoryPlan
    in_memory: Latest[dict[ModelId, LoadedModel]]
    offering: Latest[Offering]
    acquiring: Latest[tuple[AcquisitionProgress, ...]]

    @property
    def revision(self) -> Latest[int]:
        """Grows with every change of the catalog."""
        return self.catalog.revision

    def holdings(self) -> tuple[Holding, ...]:
        """Return what is here, verified."""
        return described(self.catalog)

    def known(self) -> frozenset[ModelId]:
        """Return what is in the catalog: a shard that is set aside or not checked yet has not been removed by anybody."""
        return frozenset(manifest.id for manifest in self.catalog.manifests())

    def unchecked(self) -> dict[ModelId, tuple[BlockRange, ...]]:
        """Return what the catalog has not looked at yet since the start."""
        return {model: self._kept(model) for model in self.catalog.unchecked()}

    def _kept(self, model: ModelId) -> tuple[BlockRange, ...]:
        entry = self.catalog.entry(model)
        shards = () if entry is None else entry.manifest.shards
        wanted = frozenset(() if entry is None else entry.wanted)
        return ranges([shard.block for shard in shards if shard.block is not None and shard.id in wanted])

    def pinned(self) -> frozenset[ModelId]:
        """Return what the catalog says that a person added, or named to run."""
        return self.catalog.asked()

    def stages(self) -> tuple[StageOffer, ...]:
        """Return what others may ask this node to run, and how fast it is."""
        return self.offering.value.stages

    def free_bytes(self) -> int:
        """Return the free bytes of the disk, measured now; 0 if it cannot be asked."""
        try:
            return shutil.disk_usage(_existing(self.catalog.paths.root)).free
        except OSError:
            return 0

    def awaited_bytes(self, besides: Set[ModelId]) -> int:
        """Return what the downloads and imports under way still lack, as far as their size is known."""
        entries = [entry for entry in map(self.catalog.entry, besides) if entry is not None]
        own = {f"{PREFIX}{model}" for model in besides}
        own |= {origin.exact for entry in entries for origin in entry.origins}
        return sum(
            max(0, each.total_bytes - each.done_bytes)
            for each in self.acquiring.value
            if each.phase in ("downloading", "importing") and each.reference not in own
        )

    def loaded(self) -> frozenset[ModelId]:
        """Return the models that are loaded or being loaded."""
        return frozenset(self.in_memory.value)

    def loadable_bytes(self) -> int:
        """Return how many bytes of shards the free memory would hold: those that grow most when they are loaded decide."""
        on_gpu = self.plan.on_gpu
        growths = (_growth(manifest, on_gpu=on_gpu) for manifest in self.catalog.manifests())
        return int(self.plan.free_bytes() / max(growths, default=_USUAL_GROWTH))


@attrs.frozen(eq=False)
class MailboxShards:
    """Asks the AcquisitionManager."""

    mailbox: Mailbox[Question, ModelManifest]
    catalog: ModelCatalog
    may_ask_hubs: bool  # of its own accord

    async def acquire(self, model: ModelId, blocks: BlockRange) -> None:
        """Fetch blocks from peers. Raises FileError leafs and Unavailable; cancellation keeps what has come."""
        await self.mailbox.ask(AcquireModel(f"{PREFIX}{model}", blocks, unasked=True, may_prove=self.may_ask_hubs))

    async def keep(self, share: Entrusted, room: int) -> None:
        """Hold a share, if it is one and there is room. Raises as `acquire`, and Unavailable."""
        reference, terms = f"{PREFIX}{share.model}", Terms(share.made, room)
        await self.mailbox.ask(AcquireModel(reference, share.blocks, unasked=True, terms=terms))

    def comes_from_outside(self, model: ModelId) -> bool:
        """Whether it came from a hub, which may be asked again."""
        return self._at_hub(model) is not None

    async def acquire_from_outside(self, model: ModelId, blocks: BlockRange) -> None:
        """Fetch blocks from the commit of a hub that the model was made from. Raises as `acquire`."""
        reference = self._at_hub(model)
        if reference is None:
            raise SourceUnavailable(f"it is not known which hub {short(model)} came from, or hubs are not to be asked")
        await self.mailbox.ask(AcquireModel(reference, blocks, unasked=True))

    def _at_hub(self, model: ModelId) -> str | None:
        entry = self.catalog.entry(model) if self.may_ask_hubs else None
        origins = () if entry is None else entry.origins
        return next((origin.exact for origin in origins if origin.reference.startswith(HUB_PREFIX)), None)

    async def drop(self, model: ModelId, blocks: BlockRange) -> None:
        """Let blocks go. Raises FileError leafs, UnknownModel and Unavailable."""
        await self.mailbox.ask(DropBlocks(model, blocks))


@attrs.frozen(eq=False)
class EntrustedShares:
    """Hands shares to the AutoShardManager, and says what room is left before one is made."""

    models: CatalogModels
    told: Latest[Room | None]
    mailbox: Mailbox[Entrusted, None]

    def room(self) -> int:
        """Return how many bytes more this node gives room for."""
        room = self.told.value
        held = sum(holding.nbytes for holding in self.models.holdings())
        return 0 if room is None else room.budget - room.coming - held

    async def keep(self, model: ModelId, blocks: BlockRange, block_count: int, made: Collection[HashedBytes]) -> None:
        """Have blocks of a model held. Raises MeshnodeError leafs; cancellation withdraws the wish."""
        lying = {hashed.id: hashed.nbytes for hashed in made}
        await self.mailbox.ask(Entrusted(model, blocks, block_count, frozenset(lying), sum(lying.values())))


def _growth(manifest: ModelManifest, *, on_gpu: bool) -> float:
    """Return the bytes in memory per byte on the disk."""
    resident = resident_bytes(manifest.shards, causal=manifest.config.causal, on_gpu=on_gpu)
    return max(resident / max(1, manifest.nbytes), _LEAST_GROWTH)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
