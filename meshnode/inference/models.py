"""A loaded model: its worker under supervision, its tokenizer, and how far it is."""

import attrs
import trio

from meshnode.engine.executor import StageSpec
from meshnode.errors import NoRoute
from meshnode.inference.assets import ModelAssets
from meshnode.inference.ports import BuildExecutor, Catalog, SupervisedExecutor
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, RestartPolicy
from meshnode.supervise.supervisor import Supervisor
from meshnode.types.manifest import ModelManifest, ShardKind

__all__ = ["EngineSettings", "LoadedModel", "stage_spec"]


@attrs.frozen
class EngineSettings:
    """How stages are loaded."""

    device: str  # auto, cpu or cuda
    threads: int
    context_length: int  # tokens; 0 is the model's, up to 8192
    cache_bytes: int
    max_batch: int


def stage_spec(manifest: ModelManifest, catalog: Catalog, settings: EngineSettings) -> StageSpec:
    """Describe the whole model as one stage. Raises NoRoute, naming what is missing, when a shard is not here."""
    config = manifest.config
    shards = manifest.shards_for(config.blocks, embedding=True, head=True)
    held = catalog.held(manifest.id)
    missing = [shard for shard in shards if shard.id not in held]
    if missing:
        what = ", ".join(shard.kind.value if shard.block is None else f"block {shard.block}" for shard in missing[:3])
        raise NoRoute(
            f"this node holds a part of {manifest.name} only; {len(missing)} of {len(shards)} shards are missing ({what} …)"
        )
    limit = settings.context_length or min(config.context_length, 8192)
    return StageSpec(
        model=manifest.id,
        config=config,
        blocks=config.blocks,
        embedding=True,
        head=True,
        shards=shards,
        paths=tuple(str(catalog.path(shard.id)) for shard in shards),
        device=settings.device,
        threads=settings.threads,
        context_length=min(limit, config.context_length),
        cache_bytes=settings.cache_bytes,
        max_batch=settings.max_batch,
    )


@attrs.define(eq=False)
class LoadedModel:
    """One model being served. Its worker crashes and comes back without the router noticing more than WorkerLost."""

    manifest: ModelManifest
    spec: StageSpec
    executor: SupervisedExecutor
    health: HealthBoard
    assets: ModelAssets | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    @classmethod
    def prepare(
        cls,
        manifest: ModelManifest,
        catalog: Catalog,
        settings: EngineSettings,
        build: BuildExecutor,
        health: HealthBoard,
    ) -> "LoadedModel":
        """Make the executor without starting it. Raises NoRoute."""
        spec = stage_spec(manifest, catalog, settings)
        return cls(manifest, spec, build(spec), health)

    @property
    def is_ready(self) -> bool:
        """Whether a request would be worked on at once."""
        return self.assets is not None and self.executor.incarnation > 0

    async def serve(self) -> None:
        """Keep the worker running until `scope` is cancelled."""
        spec = ChildSpec(
            f"worker:{self.manifest.name}",
            lambda: self.executor,
            restart=RestartPolicy(max_restarts=3, period=60.0),
            start_timeout=600.0,
            cooldown=30.0,
        )
        with self.scope:
            await Supervisor([spec], health=self.health, total_stop_budget=8.0).run()

    def tokenizer_shard(self) -> str:
        """Return the id of the tokenizer's shard."""
        return next(shard.id for shard in self.manifest.shards if shard.kind is ShardKind.TOKENIZER)
