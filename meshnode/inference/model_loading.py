"""Keeps the wanted models loaded, as whole or as the stage of which this node has the shards, and loads others on demand."""

import contextlib

import attrs
import structlog
import trio

from meshnode.errors import FileError, NoRoute
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.inference.assets import ModelAssets
from meshnode.inference.models import EngineSettings, LoadedModel, stage_spec
from meshnode.inference.ports import BuildExecutor, Catalog
from meshnode.supervise.health import HealthBoard
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelManifest
from meshnode.types.model_names import suited

__all__ = ["ModelLoader", "ModelTables"]

_LOOK_AGAIN = 1.0  # seconds, while a model that should be loaded anew has sessions
_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class ModelTables:
    """What is known of models, beyond one incarnation of the router."""

    catalog: Catalog
    wanted: Latest[frozenset[ModelId]]  # models to keep loaded
    loaded: Latest[dict[ModelId, LoadedModel]]  # written by the loader alone


@attrs.define(eq=False)
class ModelLoader:
    """Each loaded model is a task of `nursery`."""

    tables: ModelTables
    settings: EngineSettings
    build_executor: BuildExecutor
    lanes: Lanes
    health: HealthBoard
    nursery: trio.Nursery
    _served: set[ModelId] = attrs.field(factory=set, init=False)  # models that a task of ours serves, loaded or not

    async def run(self) -> None:
        """Follow what is wanted until cancelled; then every worker stops."""
        tables = self.tables
        self.nursery.start_soon(self._follow_shards)
        async for wanted in tables.wanted.values():
            for model, loaded in list(tables.loaded.value.items()):
                if model not in wanted:
                    loaded.end()
            for manifest in tables.catalog.manifests():
                if manifest.id in wanted and manifest.id not in self._served:
                    self._served.add(manifest.id)  # here: the task may begin after the next value has come
                    self.nursery.start_soon(self._serve, manifest)

    async def _follow_shards(self) -> None:
        """Load a model anew when other blocks of it are here than are loaded, as soon as no session uses it."""
        revision = self.tables.catalog.revision
        while True:
            seen = revision.version
            stale = [model for model in self.tables.loaded.value.values() if self._is_stale(model)]
            for model in stale:
                if not model.sessions:
                    _log.info("model loaded anew: other parts of it are here now", model=model.manifest.name)
                    model.end()
            with trio.move_on_after(_LOOK_AGAIN) if stale else contextlib.nullcontext():
                await revision.changed(seen)

    def _is_stale(self, model: LoadedModel) -> bool:
        try:
            spec = stage_spec(model.manifest, self.tables.catalog, self.settings)
        except NoRoute:
            return True
        return (spec.blocks, spec.embedding, spec.head) != (model.spec.blocks, model.spec.embedding, model.spec.head)

    def ready(self, model: ModelId) -> LoadedModel | None:
        """Return a model whose worker can be used at once."""
        loaded = self.tables.loaded.value.get(model)
        return loaded if loaded is not None and loaded.is_ready else None

    def is_wanted(self, model: ModelId) -> bool:
        """Whether a model is to be loaded here."""
        return model in self.tables.wanted.value

    def any_loaded(self, *, embeds: bool) -> ModelManifest | None:
        """Return the first model of the catalog that is loaded and made for it."""
        loaded = self.tables.loaded.value
        there = [made for made in self.tables.catalog.manifests() if made.id in loaded]
        return next(iter(suited(there, _is_causal, embeds=embeds)), None)

    def any_whole(self, *, embeds: bool) -> ModelManifest | None:
        """Return a model of which everything is here and that is made for it."""
        catalog = self.tables.catalog
        there = [made for made in catalog.manifests() if {shard.id for shard in made.shards} <= catalog.held(made.id)]
        return next(iter(suited(there, _is_causal, embeds=embeds)), None)

    async def load(self, manifest: ModelManifest) -> LoadedModel:
        """Have a model loaded, as far as its shards are here, and wait for its worker.

        Raises NoRoute when no shard of weights is here, Unavailable when they cannot be loaded.
        """
        tables = self.tables
        while True:
            version = tables.loaded.version
            model = tables.loaded.value.get(manifest.id)
            if model is None:
                stage_spec(manifest, tables.catalog, self.settings)  # refuses at once what cannot be loaded
                tables.wanted.set(tables.wanted.value | {manifest.id})
            else:
                await model.ready()
                if not model.is_ending:
                    return model
            await tables.loaded.changed(version)  # one that is ending may be loaded anew, with more blocks

    async def _serve(self, manifest: ModelManifest) -> None:
        tables, model = self.tables, None
        try:
            model = LoadedModel.prepare(manifest, tables.catalog, self.settings, self.build_executor, self.health)
            path = tables.catalog.path(model.tokenizer_shard())  # type: ignore[arg-type]  # it is a ShardId
            tables.loaded.set({**tables.loaded.value, manifest.id: model})
            model.assets = await self.lanes.run("template", ModelAssets.load, path)
            self.health.clear_condition("model_not_loaded", manifest.name)
            await model.serve()
        except (FileError, NoRoute, OSError) as error:
            self.health.raise_condition("model_not_loaded", manifest.name, str(error))
            _log.error("model not loaded", model=manifest.name, error=str(error))
            if model is not None:
                model.fail(str(error))
        finally:
            self._served.discard(manifest.id)
            tables.loaded.set({key: value for key, value in tables.loaded.value.items() if key != manifest.id})
            if model is not None and model.is_ending and manifest.id in tables.wanted.value:
                tables.wanted.set(tables.wanted.value)  # wanted again while it was being unloaded


def _is_causal(manifest: ModelManifest) -> bool:
    return manifest.config.causal
