"""What this package needs from others."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from meshnode.engine.executor import StageExecutor, StageSpec
from meshnode.flow.latest import Latest
from meshnode.supervise.subsystem import Subsystem
from meshnode.types.ids import ModelId, ShardId
from meshnode.types.manifest import ModelManifest
from meshnode.types.peers import PeerInfo

__all__ = [
    "BuildExecutor",
    "Catalog",
    "MeshView",
    "SupervisedExecutor",
]


class SupervisedExecutor(StageExecutor, Subsystem, Protocol):
    """A stage executor that a supervisor keeps running; each run is an incarnation with no memory of the last."""

    @property
    def incarnation(self) -> int:
        """A number that each time it becomes ready is one that no executor has had before; 0 until then."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it can be used at this moment."""
        ...

    async def ready(self) -> None:
        """Wait until it can be used. Cancellation changes nothing."""
        ...


BuildExecutor = Callable[[StageSpec], SupervisedExecutor]


class Catalog(Protocol):
    """The models on disk."""

    revision: Latest[int]

    def manifests(self) -> tuple[ModelManifest, ...]:
        """Return all models."""
        ...

    def resolve(self, name: str) -> ModelManifest:
        """Find a model by id, name, unique prefix or alias. Raises UnknownModel."""
        ...

    def aliases(self, model: ModelId) -> tuple[str, ...]:
        """Return other names of a model."""
        ...

    def held(self, model: ModelId) -> frozenset[ShardId]:
        """Return the shards that are here and verified."""
        ...

    def path(self, shard: ShardId) -> Path:
        """Return where a held shard lies."""
        ...


class MeshView(Protocol):
    """What is known of other nodes."""

    @property
    def changed(self) -> Latest[int]:
        """Set when anything below is."""
        ...

    def peers(self) -> tuple[PeerInfo, ...]:
        """Return all peers, ourselves not among them."""
        ...
