"""What the API is told about the node: its models, its state, and what is not ready. Plain values, made when asked."""

import os
import socket
import time
from collections.abc import Sequence
from typing import Protocol

import attrs
import trio

from meshnode import __version__
from meshnode.api.ports import ServedModel
from meshnode.errors import LastCopy, RequestError
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress, ExportModel, Question, RemoveModel
from meshnode.files.catalog import ModelCatalog
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.models import LoadedModel
from meshnode.network.holdings import described
from meshnode.network.peers import PeerView
from meshnode.node.copies import Copies, Loaded, count_copies, only_in
from meshnode.node.model_keeper import Intent
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildState, Criticality
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.manifest import ModelManifest
from meshnode.types.model_names import ModelNames
from meshnode.types.parts import Added
from meshnode.types.peers import Holding, Liveness, Offer, StageOffer

__all__ = ["ModelRequests", "ModelViews", "NodeView"]

_LONGEST_CONTEXT = 8192  # tokens, unless the settings say otherwise


@attrs.frozen(eq=False)
class ModelViews:
    """The models as clients see them: those of this node, and those that only peers have."""

    catalog: ModelCatalog
    loaded: Latest[dict[ModelId, LoadedModel]]
    intent: Latest[Intent]
    peers: PeerView
    context_length: int  # tokens, from the settings; 0: the model's
    started: int = attrs.field(factory=lambda: int(time.time()))  # Unix seconds

    def served(self) -> tuple[ServedModel, ...]:
        """Return every model, with how far it is."""
        manifests = self.catalog.manifests()
        own = {manifest.id for manifest in manifests}
        there = self._there()
        elsewhere = {stage.model: stage for stage in there.stages if stage.model not in own}
        return (
            *(self._own(manifest, there) for manifest in manifests),
            *(self._elsewhere(offer, there) for offer in elsewhere.values()),
        )

    def unready(self) -> tuple[str, ...]:
        """Return the models that are to be served and cannot be yet."""
        intent, loaded = self.intent.value, self.loaded.value
        late = [
            manifest.name
            for manifest in self.catalog.manifests()
            if manifest.id in intent.models and not (manifest.id in loaded and loaded[manifest.id].is_ready)
        ]
        return tuple(f"model {name}" for name in (*intent.pending, *late))

    def only_here(self, name: str) -> str:
        """Write what this node has of a model and no other of the mesh is known to have; empty for nothing, and for a lone node.

        Raises UnknownModel.
        """
        model = self.catalog.resolve(name).id
        offers = self._offers()
        own = next((holding for holding in described(self.catalog) if holding.model == model), None)
        others = [holding for offer in offers for holding in offer.holdings if holding.model == model]
        return str(only_in(own, others)) if own is not None and offers else ""

    def _offers(self) -> list[Offer]:
        return [
            peer.offer for peer in self.peers.peers() if peer.offer is not None and peer.liveness is not Liveness.DEAD
        ]

    def _there(self) -> "_There":
        offers = self._offers()
        return _There(
            [stage for offer in offers for stage in offer.stages],
            [*described(self.catalog), *(holding for offer in offers for holding in offer.holdings)],
        )

    def _own(self, manifest: ModelManifest, there: "_There") -> ServedModel:
        loaded = self.loaded.value.get(manifest.id)
        memory = 0 if loaded is None else loaded.memory_bytes
        is_ready = loaded is not None and loaded.is_ready
        copies = self._copies(manifest, there, loaded if is_ready else None)
        lacking = copies if loaded is None or is_ready else self._copies(manifest, there, loaded)
        shards = {shard.id for shard in manifest.shards}
        held = len(self.catalog.held(manifest.id))
        return ServedModel(
            name=manifest.name,
            id=manifest.id,
            loaded=is_ready and not copies.unloaded,
            context_length=min(self.context_length or _LONGEST_CONTEXT, manifest.config.context_length),
            created=self._created(manifest),
            quantization=manifest.quantization,
            aliases=self.catalog.aliases(manifest.id),
            detail=_detail(loaded, lacking, held, len(shards)),
            nbytes=manifest.nbytes,
            architecture=manifest.config.architecture,
            parameters=manifest.parameters,
            causal=manifest.config.causal,
            thinks=loaded is not None and loaded.thinks,
            shards=len(shards),
            shards_held=held,
            copies=copies.disks,
            routes=copies.routes,
            memory_bytes=memory,
            gpu_bytes=memory if loaded is not None and loaded.device.startswith("cuda") else 0,
        )

    def _elsewhere(self, offer: StageOffer, there: "_There") -> ServedModel:
        copies = there.copies(offer.model, offer.block_count)
        names = ModelNames(offer.model, offer.name, offer.aliases)
        return ServedModel(
            name=offer.name,
            id=offer.model,
            loaded=not copies.unloaded,
            context_length=offer.context_length,
            created=self.started,
            quantization="",
            aliases=(*offer.aliases, *self.catalog.configured_aliases(names)),
            detail=f"on peers; {copies.why()}" if copies.unloaded else "on peers",
            causal=offer.causal,
            copies=copies.disks,
            routes=copies.routes,
        )

    def _copies(self, manifest: ModelManifest, there: "_There", own: LoadedModel | None) -> Copies:
        spec = None if own is None else own.spec
        mine = [] if spec is None or spec.blocks is None else [Loaded(spec.blocks, spec.embedding, spec.head)]
        return there.copies(manifest.id, manifest.config.block_count, mine)

    def _created(self, manifest: ModelManifest) -> int:
        try:
            return int(self.catalog.path(manifest.shards[0].id).stat().st_mtime)
        except OSError:
            return self.started


@attrs.frozen
class _There:
    """What peers have loaded, and what they and this node have on disk."""

    stages: Sequence[StageOffer]
    holdings: Sequence[Holding]

    def copies(self, model: ModelId, block_count: int, own: Sequence[Loaded] = ()) -> Copies:
        """Count one model; `own` is what this node has loaded of it."""
        stages = [Loaded(each.blocks, each.embedding, each.head) for each in self.stages if each.model == model]
        return count_copies(block_count, [*stages, *own], [each for each in self.holdings if each.model == model])


def _detail(loaded: LoadedModel | None, copies: Copies, held: int, shards: int) -> str:
    """Say why a model of this node cannot be used, or which part of it is here; what is being loaded counts as there."""
    if loaded is not None:
        how = [] if loaded.is_ready else [loaded.problem or "loading"]
        here = [] if loaded.is_whole else [f"blocks {loaded.spec.blocks} here"]
        return "; ".join(how + here + ([copies.why()] if copies.unloaded else []))
    if held == shards:
        return "not loaded; the first request loads it"
    return f"{held} of {shards} shards are here" + (f"; {copies.why()}" if copies.nowhere else "")


@attrs.frozen(eq=False)
class ModelRequests:
    """Adds and removes models for the API, by asking their owner."""

    mailbox: Mailbox[Question, ModelManifest]
    models: ModelViews

    async def add(self, reference: str, blocks: str | None, *, spread: bool = False) -> Added:
        """Acquire a model. Raises FileError and RequestError leafs; cancellation stops it."""
        try:
            wanted = None if blocks is None else BlockRange.parse(blocks)
        except ValueError as error:
            raise RequestError(f"blocks: {error}", param="blocks") from error
        if spread and wanted is not None:
            raise RequestError("blocks: which blocks are held where is what spreading decides", param="blocks")
        manifest = await self.mailbox.ask(AcquireModel(reference, wanted, spread=spread))
        return Added.of(manifest, self.models.catalog.held(manifest.id))

    async def export(self, name: str, folder: str) -> str:
        """Write what is here of a model into a folder and return its name. Raises FileError leafs and RequestError."""
        if not os.path.isabs(folder):  # noqa: PTH117  # the node has a working folder of its own
            raise RequestError("folder: must be an absolute path", param="folder")
        return (await self.mailbox.ask(ExportModel(name, folder))).name

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a model and the shards no other model uses. Raises UnknownModel, and LastCopy unless by `force`."""
        if not force and (only := self.models.only_here(name)):
            raise LastCopy(
                f"no other node of the mesh is known to have {only} of {name}; it is removed all the same by force "
                "(`--force`, over HTTP `?force=true`)",
                param="force",
            )
        await self.mailbox.ask(RemoveModel(name))


class MeshState(Protocol):
    """What of the mesh is in the status."""

    @property
    def peer(self) -> PeerId:
        """Who we are to others."""
        ...

    def peers(self) -> list[dict[str, object]]:
        """Return all peers."""
        ...

    def listen_addresses(self) -> tuple[str, ...]:
        """Return our multiaddrs."""
        ...


@attrs.frozen(eq=False)
class NodeView:
    """The state of the whole node."""

    url: str
    models: ModelViews
    progress: Latest[tuple[AcquisitionProgress, ...]]
    health: HealthBoard
    mesh: MeshState
    started: float = attrs.field(factory=trio.current_time)

    def status(self, states: Sequence[ChildState]) -> dict[str, object]:
        """Return the document of /api/admin/status."""
        return {
            "node": socket.gethostname(),
            "version": __version__,
            "pid": os.getpid(),
            "url": self.url,
            "peer_id": self.mesh.peer,
            "listen_addresses": self.mesh.listen_addresses(),
            "peers": self.mesh.peers(),
            "uptime": round(trio.current_time() - self.started, 1),
            "subsystems": [
                {
                    "name": state.name,
                    "critical": state.criticality is Criticality.CRITICAL,
                    "state": state.status.value,
                    "restarts": state.restarts,
                    "last_error": state.last_error,
                }
                for state in states
            ],
            "models": [attrs.asdict(model) for model in self.models.served()],
            "workers": [
                {
                    "model": model.manifest.name,
                    "blocks": str(model.spec.blocks),
                    "device": model.device,
                    "ready": model.is_ready,
                    "restarts": model.restarts,
                }
                for model in self.models.loaded.value.values()
            ],
            "conditions": [attrs.asdict(condition) for condition in self.health.conditions()],
            "acquisitions": [attrs.asdict(row) for row in self.progress.value],
        }

    def unready(self, states: Sequence[ChildState]) -> tuple[str, ...]:
        """Return the names of subsystems and models that cannot be used now."""
        return (*(state.name for state in states if not state.is_ready), *self.models.unready())
