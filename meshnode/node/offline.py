"""Work on models while no node runs: what a node is made of, as far as model files need it, for one question."""

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from meshnode.config.loading import LoadedConfig
from meshnode.config.paths import DataPaths
from meshnode.errors import MeshnodeError
from meshnode.files.acquisition import AcquisitionManager, Supply
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress, ExportModel, Question, RemoveModel
from meshnode.files.builtin_sources import builtin_sources
from meshnode.files.catalog import ModelCatalog, open_catalog
from meshnode.files.sources import Source
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.node.data_folder import hold_data_folder
from meshnode.node.preflight import examine_tokenizer
from meshnode.observe.logging import configure_logging
from meshnode.observe.metrics import Metrics
from meshnode.store.opening import open_store
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ModelManifest
from meshnode.types.parts import Added

__all__ = ["add_model", "export_model", "list_models", "remove_model"]

ShowProgress = Callable[[Mapping[str, Any]], None]
T = TypeVar("T")


def list_models(loaded: LoadedConfig) -> list[dict[str, Any]]:
    """Return the models of the data folder, as the API lists them. Raises ConfigError, StoreError."""
    if not DataPaths(loaded.config.node.data_dir).store.exists():
        return []

    async def read(catalog: ModelCatalog, _lanes: Lanes) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return [_listed(catalog, manifest) for manifest in catalog.manifests()]

    return _with_catalog(loaded, read)


def add_model(loaded: LoadedConfig, reference: str, blocks: str | None, on_progress: ShowProgress) -> dict[str, Any]:
    """Acquire a model and say what is here, as the API does. Raises MeshnodeError leafs; Ctrl-C leaves the catalog as it was."""
    question = AcquireModel(reference, None if blocks is None else BlockRange.parse(blocks))

    async def add(catalog: ModelCatalog, lanes: Lanes) -> dict[str, Any]:
        manifest = await _ask(loaded, question, on_progress, catalog, lanes)
        return attrs.asdict(Added.of(manifest, catalog.held(manifest.id)))

    return _with_catalog(loaded, add)


def export_model(loaded: LoadedConfig, name: str, folder: str) -> str:
    """Write what is here of a model into a folder and return its name; as `add_model`."""
    return _with_catalog(loaded, partial(_ask, loaded, ExportModel(name, folder), None)).name


def remove_model(loaded: LoadedConfig, name: str) -> str:
    """Remove a model and return its full name. Raises UnknownModel, StoreError."""
    return _with_catalog(loaded, partial(_ask, loaded, RemoveModel(name), None)).name


def _with_catalog(loaded: LoadedConfig, work: Callable[[ModelCatalog, Lanes], Awaitable[T]]) -> T:
    """Hold the folder, open its catalog, do the work, and let one plain exception out."""
    configure_logging("error", json=None)  # the command's own words say what happened

    async def opened() -> T:
        lanes = Lanes()
        async with open_store(paths.store, lanes) as store:
            catalog = await open_catalog(store, paths, Metrics(), loaded.config.models.aliases)
            return await work(catalog, lanes)

    with ExitStack() as stack:
        stack.enter_context(_one_cause())
        paths = stack.enter_context(hold_data_folder(loaded.config.node.data_dir))
        return trio.run(opened)


async def _ask(
    loaded: LoadedConfig,
    question: Question,
    on_progress: ShowProgress | None,
    catalog: ModelCatalog,
    lanes: Lanes,
) -> ModelManifest:
    mailbox: Mailbox[Question, ModelManifest] = Mailbox("acquisition", 0)
    progress: Latest[tuple[AcquisitionProgress, ...]] = Latest(())
    sources = builtin_sources(
        lanes,
        offline=loaded.config.node.offline,
        environment=os.environ,
        downloads=catalog.paths.transfers,
        examine=examine_tokenizer,
    )
    manager = AcquisitionManager(catalog, mailbox, progress, lanes, Supply(sources), HealthBoard(), Pulse())
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        if on_progress is not None and isinstance(question, AcquireModel):
            nursery.start_soon(_show, progress, _label(sources, question.reference), on_progress)
        manifest = await mailbox.ask(question)
        nursery.cancel_scope.cancel()
    return manifest


async def _show(progress: Latest[tuple[AcquisitionProgress, ...]], label: str, on_progress: ShowProgress) -> None:
    """Pass on what concerns our model until cancelled; the manager also verifies the others meanwhile."""
    async for rows in progress.values():
        for row in rows:
            if row.reference == label:
                on_progress(attrs.asdict(row))


def _label(sources: tuple[Source, ...], reference: str) -> str:
    return next((source.canonical(reference) for source in sources if source.accepts(reference)), reference)


def _listed(catalog: ModelCatalog, manifest: ModelManifest) -> dict[str, Any]:
    entry = catalog.entry(manifest.id)
    return {
        "name": manifest.name,
        "id": manifest.id,
        "loaded": False,
        "context_length": manifest.config.context_length,
        "quantization": manifest.quantization,
        "aliases": [] if entry is None else list(entry.aliases),
        "detail": "no node is running",
        "shards": len({shard.id for shard in manifest.shards}),
        "shards_held": 0 if entry is None else sum(catalog.path(shard).exists() for shard in set(entry.wanted)),
    }


@contextmanager
def _one_cause() -> Iterator[None]:
    """Take what the command line can explain out of the groups of the nurseries it passed: Ctrl-C, or one of our errors."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from group
        cause: BaseException = group
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        if isinstance(cause, MeshnodeError):
            raise cause from None
        raise
