"""A loaded model: its worker under supervision, its tokenizer, and how far it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio

from meshnode.engine.executor import ExecutorStats, StageSpec
from meshnode.errors import NoRoute, Unavailable, WorkerLost
from meshnode.flow.latest import Latest
from meshnode.inference.assets import ModelAssets
from meshnode.inference.ports import BuildExecutor, Catalog, SupervisedExecutor
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, RestartPolicy
from meshnode.supervise.supervisor import Supervisor
from meshnode.types.blocks import BlockRange, runs_of
from meshnode.types.manifest import ModelManifest, ShardKind
from meshnode.types.peers import StageOffer

_MEASURE_EVERY = 2.0  # seconds; one small message to the worker

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
    """Describe the stage that can be loaded from the shards that are here: the longest run of blocks, embedding and head.

    Raises NoRoute when there is none.
    """
    config = manifest.config
    held = catalog.held(manifest.id)
    kinds = {shard.kind for shard in manifest.shards if shard.id in held}
    embedding, head = ShardKind.EMBEDDING in kinds, ShardKind.HEAD in kinds
    blocks = _longest_run([shard.block for shard in manifest.shards if shard.block is not None and shard.id in held])
    if blocks is None:
        raise NoRoute(f"this node holds no block of {manifest.name}; add it with `meshnode models add`")
    shards = manifest.shards_for(blocks, embedding=embedding, head=head)
    limit = settings.context_length or min(config.context_length, 8192)
    return StageSpec(
        model=manifest.id,
        config=config,
        blocks=blocks,
        embedding=embedding,
        head=head,
        shards=shards,
        paths=tuple(str(catalog.path(shard.id)) for shard in shards),
        device=settings.device,
        threads=settings.threads,
        context_length=min(limit, config.context_length),
        cache_bytes=settings.cache_bytes,
        max_batch=settings.max_batch,
        tokenizer=_tokenizer_path(manifest, catalog) if head else "",
    )


def _tokenizer_path(manifest: ModelManifest, catalog: Catalog) -> str:
    """Return where the tokenizer lies; every holder of a part has it."""
    shard = next(shard.id for shard in manifest.shards if shard.kind is ShardKind.TOKENIZER)
    return str(catalog.path(shard)) if shard in catalog.held(manifest.id) else ""


def _longest_run(blocks: Sequence[int]) -> BlockRange | None:
    """Return the longest range without a gap, the first of equals; None for no block."""
    return max(runs_of(blocks), key=lambda run: (len(run), -run.start), default=None)


@attrs.define(eq=False)
class LoadedModel:
    """One model being served. Its worker crashes and comes back without the router noticing more than WorkerLost.

    A worker that cannot load the stage is another matter: whoever waits is told why, and so is whoever comes until a later
    try succeeds.
    """

    manifest: ModelManifest
    spec: StageSpec
    executor: SupervisedExecutor
    health: HealthBoard
    aliases: tuple[str, ...] = ()
    assets: ModelAssets | None = None
    sessions: int = attrs.field(default=0, init=False)  # sessions that hold memory of the worker
    restarts: int = attrs.field(default=0, init=False)  # of the worker, after it has ended or could not load
    stats: ExecutorStats | None = attrs.field(default=None, init=False)  # the newest of this incarnation
    measured: Latest[int] = attrs.field(factory=lambda: Latest(0), init=False)  # how often `stats` has been looked at
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _problem: Latest[str | None] = attrs.field(factory=lambda: Latest(None), init=False)
    _seen: int = attrs.field(default=0, init=False)  # the executor's incarnation at the last crash

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
        return cls(manifest, spec, build(spec), health, catalog.aliases(manifest.id))

    @property
    def device(self) -> str:
        """Where it computes; what the settings say until the worker has chosen."""
        return self.spec.device if self.stats is None else self.stats.device or self.spec.device

    @property
    def memory_bytes(self) -> int:
        """What its weights and caches held when they were last looked at; 0 until then."""
        stats = self.stats
        return 0 if stats is None else stats.weight_bytes + stats.cache_bytes_used + stats.kept_bytes

    @property
    def is_whole(self) -> bool:
        """Whether this node alone can answer with it."""
        return self.spec.is_whole_model

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of activations between stages."""
        return 2 * self.manifest.config.hidden_size

    @property
    def is_ready(self) -> bool:
        """Whether a request would be worked on at once."""
        return self.assets is not None and self.executor.incarnation > 0 and self.problem is None

    @property
    def thinks(self) -> bool:
        """Whether its template lets it reason before it answers."""
        return self.assets is not None and self.assets.template is not None and self.assets.template.may_think

    @property
    def problem(self) -> str | None:
        """Why the model cannot be used, if the last try to load it failed."""
        return self._problem.value if self.executor.incarnation == self._seen else None

    def fail(self, reason: str) -> None:
        """Tell everybody who waits for this model that it cannot be loaded."""
        self._seen = self.executor.incarnation
        self._problem.set(reason)

    @property
    def is_ending(self) -> bool:
        """Whether its worker is being stopped, or has been, for good."""
        return self.scope.cancel_called

    def end(self) -> None:
        """Stop the worker; whoever waits for it need not."""
        self.scope.cancel()
        self._problem.set(self._problem.value)

    async def ready(self) -> None:
        """Wait until a worker can be used, or never will. Raises Unavailable with the reason when the load fails.

        Cancellation changes nothing.
        """
        if self.problem is None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_at_problem, nursery.cancel_scope)
                await self.executor.ready()
                nursery.cancel_scope.cancel()
        if self.problem is not None:
            raise Unavailable(f"{self.manifest.name} cannot be loaded now: {self.problem}")

    @contextmanager
    def session(self) -> Iterator[None]:
        """Count a session in, and out again."""
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1

    async def serve(self) -> None:
        """Keep the worker running until `scope` is cancelled."""
        spec = ChildSpec(
            f"worker:{self.manifest.name}",
            lambda: self.executor,
            restart=RestartPolicy(max_restarts=3, period=60.0),
            start_timeout=600.0,
            cooldown=30.0,
        )
        supervisor = Supervisor(
            [spec], health=self.health, total_stop_budget=8.0, on_crash=lambda _: self._crashed(supervisor)
        )
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._measure)
                await supervisor.run()
                nursery.cancel_scope.cancel()

    def offer(self) -> StageOffer | None:
        """Say what can be asked of this stage; None while its worker is not there, or not measured yet."""
        stats, spec, config = self.stats, self.spec, self.manifest.config
        if stats is None or spec.blocks is None or not self.is_ready or not self.executor.is_ready:
            return None
        return StageOffer(
            model=self.manifest.id,
            name=self.manifest.name,
            block_count=config.block_count,
            hidden_size=config.hidden_size,
            context_length=spec.context_length,
            blocks=spec.blocks,
            embedding=spec.embedding,
            head=spec.head,
            drift_class=stats.drift_class,
            block_seconds=stats.block_seconds,
            prefill_seconds=stats.prefill_seconds,
            free_tokens=stats.free_tokens,
            aliases=self.aliases,
            causal=config.causal,
        )

    async def _measure(self) -> None:
        """Keep `stats` fresh."""
        while True:
            await self.executor.ready()
            try:
                self.stats = await self.executor.stats()
            except WorkerLost:
                self.stats = None
            self.measured.set(self.measured.value + 1)
            await trio.sleep(_MEASURE_EVERY)

    def _crashed(self, supervisor: Supervisor) -> None:
        self.restarts += 1
        if self.executor.incarnation == self._seen:  # it has not been ready since the crash before
            self.fail(supervisor.states()[0].last_error or "the worker process ended")
        else:
            self._seen = self.executor.incarnation
            self._problem.set(None)

    async def _cancel_at_problem(self, scope: trio.CancelScope) -> None:
        while self.problem is None and not self.is_ending:
            await self._problem.changed(self._problem.version)
        scope.cancel()

    def tokenizer_shard(self) -> str:
        """Return the id of the tokenizer's shard."""
        return next(shard.id for shard in self.manifest.shards if shard.kind is ShardKind.TOKENIZER)
