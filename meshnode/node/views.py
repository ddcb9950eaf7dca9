"""What the API is told about the node: its models, its state, and what is not ready. Plain values, made when asked."""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import trio

from meshnode import __version__
from meshnode.api.ports import ServedModel
from meshnode.errors import RequestError
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress, RemoveModel
from meshnode.files.catalog import ModelCatalog
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.models import LoadedModel
from meshnode.node.model_keeper import Intent
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildState, Criticality
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.manifest import ModelManifest

__all__ = ["ModelRequests", "ModelViews", "NodeView"]

_LONGEST_CONTEXT = 8192  # tokens, unless the settings say otherwise


@attrs.frozen(eq=False)
class ModelViews:
    """The models as clients see them."""

    catalog: ModelCatalog
    loaded: Latest[dict[ModelId, LoadedModel]]
    intent: Latest[Intent]
    context_length: int  # tokens, from the settings; 0: the model's
    aliases: Mapping[str, str]  # alias -> model name, from the settings

    def served(self) -> tuple[ServedModel, ...]:
        """Return every model of the catalog, with how far it is."""
        return tuple(self._served(manifest) for manifest in self.catalog.manifests())

    def unready(self) -> tuple[str, ...]:
        """Return the models that are to be served and cannot be yet."""
        intent, loaded = self.intent.value, self.loaded.value
        late = [
            manifest.name
            for manifest in self.catalog.manifests()
            if manifest.id in intent.models and not (manifest.id in loaded and loaded[manifest.id].is_ready)
        ]
        return tuple(f"model {name}" for name in (*intent.pending, *late))

    def _served(self, manifest: ModelManifest) -> ServedModel:
        entry, loaded = self.catalog.entry(manifest.id), self.loaded.value.get(manifest.id)
        own = entry.aliases if entry is not None else ()
        configured = tuple(alias for alias, name in self.aliases.items() if name == manifest.name)
        return ServedModel(
            name=manifest.name,
            id=manifest.id,
            loaded=loaded is not None and loaded.is_ready,
            context_length=min(self.context_length or _LONGEST_CONTEXT, manifest.config.context_length),
            created=self._created(manifest),
            quantization=manifest.quantization,
            aliases=tuple(dict.fromkeys((*own, *configured))),
            detail=self._detail(manifest, loaded),
        )

    def _detail(self, manifest: ModelManifest, loaded: LoadedModel | None) -> str:
        if loaded is not None:
            return "" if loaded.is_ready else loaded.problem or "loading"
        held, shards = len(self.catalog.held(manifest.id)), len({shard.id for shard in manifest.shards})
        return "not loaded; the first request loads it" if held == shards else f"{held} of {shards} shards are here"

    def _created(self, manifest: ModelManifest) -> int:
        try:
            return int(self.catalog.path(manifest.shards[0].id).stat().st_mtime)
        except OSError:
            return 0


@attrs.frozen(eq=False)
class ModelRequests:
    """Adds and removes models for the API, by asking their owner."""

    mailbox: Mailbox[AcquireModel | RemoveModel, ModelManifest]

    async def add(self, reference: str, blocks: str | None) -> str:
        """Acquire a model and return its name. Raises FileError and RequestError leafs; cancellation stops it."""
        try:
            wanted = None if blocks is None else BlockRange.parse(blocks)
        except ValueError as error:
            raise RequestError(f"blocks: {error}", param="blocks") from error
        return (await self.mailbox.ask(AcquireModel(reference, wanted))).name

    async def remove(self, name: str) -> None:
        """Remove a model and the shards no other model uses. Raises UnknownModel."""
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
                    "device": model.spec.device,
                    "ready": model.is_ready,
                    "restarts": max(0, model.executor.incarnation - 1),
                }
                for model in self.models.loaded.value.values()
            ],
            "conditions": [attrs.asdict(condition) for condition in self.health.conditions()],
            "acquisitions": [attrs.asdict(row) for row in self.progress.value],
        }

    def unready(self, states: Sequence[ChildState]) -> tuple[str, ...]:
        """Return the names of subsystems and models that cannot be used now."""
        return (*(state.name for state in states if not state.is_ready), *self.models.unready())
