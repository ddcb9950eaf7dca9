"""Keeps the models that the settings ask for: acquires them, has them loaded, and tells how far they are."""

from collections.abc import Mapping, Sequence

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, SourceUnavailable, Unavailable, UnknownModel
from meshnode.files.acquisitions import AcquireModel, AcquisitionProgress, Question
from meshnode.files.catalog import ModelCatalog
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.supervise.health import HealthBoard
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelManifest

__all__ = ["Intent", "KeeperResources", "ModelKeeper"]

_NAME = "ModelKeeper"
_NOT_ACQUIRED = "model_not_acquired"
_FIRST_PAUSE, _LONGEST_PAUSE = 15.0, 600.0  # seconds between tries to reach a source that is not there
_TOLD_EVERY = 5.0  # seconds between lines about one acquisition

_log = structlog.get_logger(__name__)


@attrs.frozen
class Intent:
    """What the node is to serve, as far as it is known."""

    pending: tuple[str, ...] = ()  # references that are not here yet
    models: frozenset[ModelId] = frozenset()  # models that are to be loaded once what is kept of them is held


@attrs.frozen(eq=False)
class KeeperResources:
    """What outlives an incarnation of the keeper."""

    catalog: ModelCatalog
    mailbox: Mailbox[Question, ModelManifest]
    progress: Latest[tuple[AcquisitionProgress, ...]]
    intent: Latest[Intent]  # written by the keeper alone
    wanted: Latest[frozenset[ModelId]]  # the router adds what it loads on demand
    health: HealthBoard
    hosted: Latest[frozenset[ModelId]] = attrs.field(
        factory=lambda: Latest(frozenset())
    )  # held of the node's own accord


@attrs.define(eq=False)
class ModelKeeper:
    """A subsystem. Without `names` it keeps what the data folder holds, except that of several whole models none is loaded."""

    _resources: KeeperResources
    _names: Sequence[str]
    _blocks: BlockRange | None
    _both_ends: bool = False  # embedding and head are kept too, whichever blocks
    _named: dict[str, ModelId | None] = attrs.field(factory=dict, init=False)  # None: not here yet
    _troubles: dict[str, str] = attrs.field(factory=dict, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; an acquisition that is under way is withdrawn then."""
        self._named = dict.fromkeys(self._names)
        async with trio.open_nursery() as nursery:
            for name in self._named:
                nursery.start_soon(self._acquire, name)
            nursery.start_soon(self._tell_progress)
            self._update()
            task_status.started()
            async for _ in self._resources.catalog.revision.values():
                self._update()

    async def drain(self) -> None:
        """Nothing to do: what is under way may be cancelled."""

    async def _acquire(self, name: str) -> None:
        """Try until it is here, or cannot be had."""
        pause = _FIRST_PAUSE
        while True:
            try:
                manifest = await self._ask_for(name)
            except (SourceUnavailable, Unavailable) as error:
                self._set_trouble(name, f"{name} cannot be had now: {error}; next try in {pause:.0f} s")
            except MeshnodeError as error:
                self._set_trouble(name, f"{name} cannot be served: {error}")
                return
            else:
                self._named[name] = manifest.id
                self._set_trouble(name, None)
                self._update()
                return
            await trio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _ask_for(self, name: str) -> ModelManifest:
        """Have everything of a model here; `name` is that of a model in the catalog, or a reference to a source."""
        catalog, reference = self._resources.catalog, name
        try:
            manifest = catalog.resolve(name)
        except UnknownModel:
            manifest = None
        if manifest is not None:
            entry = catalog.entry(manifest.id)
            if entry is None or not entry.origins:  # nobody has it any more: what is here is what there is
                return manifest
            reference = entry.origins[0].exact  # a newer version is for who names the reference itself
        return await self._resources.mailbox.ask(AcquireModel(reference, self._blocks, self._both_ends))

    def _update(self) -> None:
        """Bring intent and wanted models in line with the catalog."""
        shared = self._resources
        manifests = {manifest.id: manifest for manifest in shared.catalog.manifests()}
        if self._names:
            pending = tuple(name for name, model in self._named.items() if model is None)
            kept = frozenset(model for model in self._named.values() if model is not None and model in manifests)
        else:
            pending, kept = (), self._unasked(manifests)
        kept |= shared.hosted.value & manifests.keys()
        served = frozenset(model for model in kept if self._has_blocks(manifests[model]))
        intent = Intent(pending, served)
        if intent != shared.intent.value:
            shared.intent.set(intent)
        wanted = (shared.wanted.value & frozenset(manifests)) | frozenset(filter(self._is_complete, served))
        if wanted != shared.wanted.value:
            shared.wanted.set(wanted)

    def _unasked(self, manifests: Mapping[ModelId, ModelManifest]) -> frozenset[ModelId]:
        """Return what is kept loaded when nothing is named: parts, on which other nodes rely, and a whole model if it is alone.

        Several would take each other's memory whether anybody asks for them or not; the first request loads one of them.
        """
        whole = frozenset(model for model in manifests if self._is_meant_whole(manifests[model]))
        return frozenset(manifests) - (whole if len(whole) > 1 else frozenset())

    def _is_meant_whole(self, manifest: ModelManifest) -> bool:
        entry = self._resources.catalog.entry(manifest.id)
        return entry is not None and {shard.id for shard in manifest.shards} <= set(entry.wanted)

    def _has_blocks(self, manifest: ModelManifest) -> bool:
        """Whether this node keeps blocks of a model, all of them or some."""
        entry = self._resources.catalog.entry(manifest.id)
        blocks = {shard.id for shard in manifest.shards if shard.block is not None}
        return entry is not None and not blocks.isdisjoint(entry.wanted)

    def _is_complete(self, model: ModelId) -> bool:
        """Whether everything that this node is to keep of a model is here."""
        entry = self._resources.catalog.entry(model)
        return entry is not None and set(entry.wanted) <= self._resources.catalog.held(model)

    def _set_trouble(self, name: str, text: str | None) -> None:
        if text is None:
            self._troubles.pop(name, None)
        else:
            self._troubles[name] = text
            _log.error("model not acquired", model=name, error=text)
        if self._troubles:
            self._resources.health.raise_condition(_NOT_ACQUIRED, _NAME, "; ".join(self._troubles.values()))
        else:
            self._resources.health.clear_condition(_NOT_ACQUIRED, _NAME)

    async def _tell_progress(self) -> None:
        """Write acquisitions to the log: each change of phase, and a line now and then in between."""
        told: dict[str, tuple[str, float]] = {}
        async for rows in self._resources.progress.values():
            now = trio.current_time()
            told = {row.reference: told[row.reference] for row in rows if row.reference in told}
            for row in rows:
                phase, at = told.get(row.reference, ("", now))
                if row.phase == phase and (row.phase in ("done", "failed") or now - at < _TOLD_EVERY):
                    continue
                told[row.reference] = (row.phase, now)
                share = f"{100 * row.done_bytes // row.total_bytes} %" if row.total_bytes else ""
                _log.info(f"model {row.phase}", reference=row.reference, mib=row.done_bytes >> 20, share=share)
