"""The AcquisitionManager: gets models, keeps their shards verified, removes them.

It is the only writer of the catalog and of the shard folder. A shard counts as held once its hash has been checked since this
process started; one that fails the check is quarantined and made again from its source where that is still there.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import attrs
import structlog
import trio

from meshnode.errors import FileError, InvalidModelFile, MeshnodeError, RequestError, Unavailable, UnknownModel
from meshnode.files.acquisitions import (
    AcquireModel,
    AcquisitionProgress,
    DropBlocks,
    ExportModel,
    Question,
    RemoveModel,
)
from meshnode.files.catalog import CatalogEntry, ModelCatalog
from meshnode.files.hub_copies import HubCopies
from meshnode.files.hub_mirror import forget_mirrors
from meshnode.files.hub_source import HubSource
from meshnode.files.jobs import ModelJobs, Part
from meshnode.files.part_file import forget_parts, newest_of
from meshnode.files.peer_copies import PREFIX, PeerCopies
from meshnode.files.peer_ports import PeerShards
from meshnode.files.progress import ProgressBoard
from meshnode.files.shard_folder import copy_shards, export_model, read_manifest, shard_folder_at
from meshnode.files.share_making import ShareMaker
from meshnode.files.share_records import Leftovers, ShareRecords, forget_records
from meshnode.files.sources import Origin, Source
from meshnode.files.spreading import Spreading
from meshnode.files.staging import in_place, tidy
from meshnode.files.verification import verify_model
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Letter, Mailbox
from meshnode.flow.periodic import Ticker
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelManifest, ShardDescriptor
from meshnode.types.model_names import ModelNames

__all__ = ["AcquisitionManager", "Supply"]

_NAME = "AcquisitionManager"
_INCOMPLETE = "model_incomplete"
_PULSE_EVERY = 5.0  # seconds
_SWEEP_EVERY = 600.0  # seconds
_PARTS_KEPT = 7 * 86400.0  # seconds that others are newer
_log = structlog.get_logger()


@attrs.frozen(eq=False)
class Supply:
    """Where models come from."""

    sources: Sequence[Source]
    peers: PeerShards | None = None  # None: a node that knows nobody
    maker: ShareMaker | None = None  # makes this node's share of what several fetch together


@attrs.define(eq=False)
class AcquisitionManager:
    """A subsystem. Each letter is served by a task of its own; work on one reference is done one at a time."""

    _catalog: ModelCatalog
    _mailbox: Mailbox[Question, ModelManifest]
    _progress: Latest[tuple[AcquisitionProgress, ...]]
    _lanes: Lanes
    _supply: Supply
    _health: HealthBoard
    _pulse: Pulse
    _copies: PeerCopies | None = attrs.field(default=None, init=False)
    _hub_copies: HubCopies | None = attrs.field(default=None, init=False)  # asks peers before a hub
    _jobs: ModelJobs = attrs.field(init=False)
    _board: ProgressBoard = attrs.field(init=False)
    _troubles: dict[ModelId, str] = attrs.field(factory=dict, init=False)  # why a model lacks shards
    _draining: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._board = ProgressBoard(self._progress)
        self._jobs = ModelJobs(self._catalog, self._lanes, self._board)
        if self._supply.peers is not None:
            self._copies = PeerCopies(self._jobs, self._supply.peers)
            hub = next((source for source in self._supply.sources if isinstance(source, HubSource)), None)
            if hub is not None and self._supply.maker is not None:
                self._hub_copies = HubCopies(hub, self._jobs, self._copies, self._supply.maker)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; models are verified in the background.

        Cancellation ends downloads and imports within one piece of work, removes what is half done, and leaves the catalog as
        before them.
        """
        self._progress.set(())
        await self._tidy()
        with self._mailbox.serve() as letters:
            async with trio.open_nursery() as nursery:
                for entry in self._catalog.entries():
                    nursery.start_soon(self._check, entry.manifest.id)
                nursery.start_soon(self._sweep)
                task_status.started()
                while True:
                    self._pulse.touch()
                    with trio.move_on_after(_PULSE_EVERY):
                        nursery.start_soon(self._serve, await anext(letters))

    async def drain(self) -> None:
        """Refuse new work. What is under way is not waited for: it is safe to cancel."""
        self._draining = True

    async def _tidy(self) -> None:
        paths = self._catalog.paths
        try:
            moved = await self._lanes.run("disk", tidy, paths, self._catalog.wanted())
            here = await self._lanes.run("disk", in_place, paths.shards, self._catalog.wanted())
            for lent in (False, True):
                await self._lanes.run("disk", ShareRecords(paths.transfers, lent).drop_taken, here.__contains__)
            oldest = await self._lanes.run("disk", newest_of, paths.transfers) - _PARTS_KEPT
            await self._lanes.run("disk", forget_parts, paths.transfers, here, oldest)
            await self._lanes.run("disk", forget_mirrors, paths.transfers, oldest)
            await self._lanes.run("disk", forget_records, paths.transfers, oldest)
        except FileError as error:  # the models that are in their place can be used all the same
            _log.warning("files.not_tidied", error=str(error))
        else:
            if moved:
                _log.info("files.import_finished", shards=moved)

    async def _sweep(self) -> None:
        """Delete what this node has fetched for others and they have not come back for."""
        leftovers = Leftovers(ShareRecords(self._catalog.paths.transfers, lent=True))
        async for _ in Ticker(_SWEEP_EVERY):
            try:
                await self._lanes.run("disk", leftovers.sweep, trio.current_time())
            except FileError as error:
                _log.warning("files.not_tidied", error=str(error))

    async def _check(self, model: ModelId) -> None:
        """Verify a model, and repair what fails. Whoever wants more of it, under whatever name, waits until this is done."""
        entry = self._catalog.entry(model)
        if entry is None:
            return
        async with self._jobs.turns.of(f"{PREFIX}{model}", *_turns(entry)):
            entry = self._catalog.entry(model)
            if entry is not None and await self._is_verified(entry):
                self._board.forget(entry.label)
            elif entry is not None:
                await self._repair(entry)
            self._catalog.note_checked(model)

    async def _is_verified(self, entry: CatalogEntry) -> bool:
        async with self._jobs.turns.of(*(origin.version for origin in entry.origins)):
            return await verify_model(entry, self._catalog, self._lanes, self._board)

    async def _repair(self, entry: CatalogEntry) -> None:
        reason = "it is not known where it came from; add the model again"
        for origin in entry.origins:
            try:
                source, _ = self._source_of(origin.reference)
                if isinstance(source, HubSource) and self._hub_copies is not None:
                    await self._hub_copies.repair(origin, entry.manifest)
                else:
                    await self._jobs.repair(source, entry, origin)
            except MeshnodeError as error:
                reason = str(error)
            else:
                _log.info("model.repaired", model=entry.manifest.name, source=origin.reference)
                return
        if self._copies is not None:
            try:
                await self._copies.complete(entry)
            except MeshnodeError as error:
                reason = f"{reason}; {error}" if entry.origins else str(error)
            else:
                _log.info("model.repaired", model=entry.manifest.name, source="peers")
                return
        self._board.fail(entry.label, reason)
        self._set_trouble(entry.manifest.id, f"{entry.manifest.name} lacks shards that cannot be made again: {reason}")

    async def _serve(self, letter: Letter[Question, ModelManifest]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_abandoned, letter, nursery.cancel_scope)
            await self._settle(letter)
            nursery.cancel_scope.cancel()

    async def _settle(self, letter: Letter[Question, ModelManifest]) -> None:
        question = letter.question
        what = _named(question)
        try:
            letter.answer(await self._answer(question))
        except MeshnodeError as error:
            _log.warning("acquisition.failed", what=what, code=error.code, error=str(error))
            self._fail(question, str(error))
            letter.refuse(error)
        except Exception as error:  # noqa: BLE001  # the rim of a request: one that fails must not end the others
            _log.exception("acquisition.crashed", what=what)
            self._fail(question, "an internal error; see the log")
            letter.refuse(FileError(f"an internal error: {type(error).__name__}; the log has the details"))

    async def _answer(self, question: Question) -> ModelManifest:
        if self._draining:
            raise Unavailable("the node is stopping")
        if isinstance(question, RemoveModel):
            return await self._remove(question.name)
        if isinstance(question, DropBlocks):
            return await self._drop(question)
        if isinstance(question, ExportModel):
            return await self._export(question)
        folder = await self._lanes.run("disk", shard_folder_at, question.reference)
        if folder is not None:
            return await self._import(folder, question)
        part = _part(question)
        source, reference = self._way_to(question.reference)
        hub_copies = self._hub_copies if isinstance(source, HubSource) else None
        try:
            async with self._jobs.turns.of(reference):
                if question.spread:
                    manifest = await self._spread(source, reference)
                elif isinstance(source, ModelNames):
                    assert self._copies is not None
                    manifest = await self._copies.acquire(source, part, question.terms)
                else:
                    others = None if hub_copies is None else hub_copies.acquire
                    manifest = await self._jobs.acquire(source, reference, part, others)
                if not question.unasked:
                    await self._jobs.revise(manifest.id, _asked)
                if hub_copies or not question.unasked or question.may_prove:  # else no hub is to be asked
                    await self._confirm(manifest, question)
        except BaseException:  # cancellation too, which may come as a group; an error is shown by whoever catches it
            self._board.forget(reference)
            raise
        self._set_trouble(manifest.id, None)
        _log.info("model.acquired", model=manifest.name, id=manifest.id, bytes=manifest.nbytes)
        return manifest

    async def _confirm(self, manifest: ModelManifest, question: AcquireModel) -> None:
        """Prove what samples have spoken for. Raises InvalidModelFile for something else, to a person: they can remove it."""
        if self._hub_copies is None:
            return
        try:
            await self._hub_copies.confirm(manifest.id)
        except InvalidModelFile as error:
            if not question.unasked:
                raise
            _log.warning("model not proved", model=manifest.name, error=str(error))

    async def _spread(self, source: Source | ModelNames, reference: str) -> ModelManifest:
        if not isinstance(source, HubSource):
            raise RequestError(
                "--spread divides what comes from a hub (hf:OWNER/REPO) among nodes; leave it out", param="spread"
            )
        if self._hub_copies is None:
            raise RequestError("--spread needs other nodes, and this one has no network", param="spread")
        return await Spreading(self._hub_copies).acquire(reference)

    async def _import(self, folder: Path, question: AcquireModel) -> ModelManifest:
        """Take shards from a folder that another node has exported them to."""
        reference = str(folder)
        async with self._jobs.turns.of(reference):
            manifest = await self._lanes.run("hashing", read_manifest, folder)
            fetch = partial(self._copy, folder, reference)
            manifest = await self._jobs.adopt(manifest, Origin(reference, manifest.id), _part(question), fetch)
            if not question.unasked:
                await self._jobs.revise(manifest.id, _asked)
        self._set_trouble(manifest.id, None)
        _log.info("model.acquired", model=manifest.name, id=manifest.id, bytes=manifest.nbytes)
        return manifest

    async def _copy(self, folder: Path, label: str, shards: tuple[ShardDescriptor, ...], staging: Path) -> None:
        def report(done: int, total: int) -> None:
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(self._board.report, label, "importing", done, total)

        await self._lanes.run("hashing", copy_shards, folder, shards, staging, report)

    async def _remove(self, name: str) -> ModelManifest:
        manifest = self._catalog.resolve(name)
        entry = self._catalog.entry(manifest.id)
        async with self._jobs.turns.of(*_turns(entry)):
            entry = self._catalog.entry(manifest.id)
            if entry is None:
                raise UnknownModel(f"{manifest.name} has been removed meanwhile", param="name")
            await self._jobs.remove(entry)
        for origin in entry.origins:
            self._board.forget(origin.reference)
        self._set_trouble(manifest.id, None)
        _log.info("model.removed", model=manifest.name, id=manifest.id)
        return manifest

    async def _export(self, question: ExportModel) -> ModelManifest:
        manifest = self._catalog.resolve(question.name)
        entry = self._catalog.entry(manifest.id)
        async with self._jobs.turns.of(*_turns(entry)):
            held = [(shard, self._catalog.path(shard)) for shard in sorted(self._catalog.held(manifest.id))]
            if not held:
                raise UnknownModel(f"nothing of {manifest.name} is here and verified", param="name")
            nbytes = await self._lanes.run("disk", export_model, manifest, held, Path(question.folder))
        _log.info("model exported", model=manifest.name, folder=question.folder, bytes=nbytes)
        return manifest

    async def _drop(self, question: DropBlocks) -> ModelManifest:
        entry = self._droppable(question.model)
        names = (f"{PREFIX}{question.model}", *_turns(entry))
        if not self._jobs.turns.is_free(*names):  # what others vouched for may be gone when an hour's download is done
            raise Unavailable(f"{entry.manifest.name} is being worked on; nothing of it is dropped meanwhile")
        async with self._jobs.turns.of(*names):
            entry = self._droppable(question.model)
            await self._jobs.shrink(entry, question.blocks)
        _log.info("blocks dropped", model=entry.manifest.name, blocks=str(question.blocks))
        return entry.manifest

    def _droppable(self, model: ModelId) -> CatalogEntry:
        entry = self._catalog.entry(model)
        if entry is None:
            raise UnknownModel(f"there is no model {model[:12]} any more", param="model")
        if entry.asked:
            raise RequestError(f"a person has asked for {entry.manifest.name} here", param="model")
        return entry

    def _way_to(self, reference: str) -> tuple[Source | ModelNames, str]:
        """Return what a reference leads to and how it is written for good.

        What peers call their models counts only where no source knows the reference: nobody else says what `starter` is.
        """
        try:
            return self._source_of(reference)
        except RequestError:
            found = None if self._copies is None else self._copies.find(reference)
            if found is None:
                raise
            return found, f"{PREFIX}{found.id}"

    def _source_of(self, reference: str) -> tuple[Source, str]:
        for source in self._supply.sources:
            if source.accepts(reference):
                return source, source.canonical(reference)
        raise RequestError(
            f"{reference[:200]!r} is not a model reference; use starter, hf:OWNER/REPO, the path of a .gguf file, the path of a "
            "folder with a Hugging Face checkpoint, or the name of a model that peers have",
            param="reference",
        )

    def _fail(self, question: Question, error: str) -> None:
        if isinstance(question, AcquireModel):
            try:
                _, label = self._way_to(question.reference)
            except MeshnodeError:
                label = question.reference[:200]
            self._board.fail(label, error)

    def _set_trouble(self, model: ModelId, text: str | None) -> None:
        if text is None:
            self._troubles.pop(model, None)
        else:
            self._troubles[model] = text
        if self._troubles:
            self._health.raise_condition(_INCOMPLETE, _NAME, "; ".join(self._troubles.values()))
        else:
            self._health.clear_condition(_INCOMPLETE, _NAME)


def _part(question: AcquireModel) -> Part:
    return Part(question.blocks, question.both_ends)


def _turns(entry: CatalogEntry | None) -> tuple[str, ...]:
    """Return what work on a model waits for: its references, or its id where it has none."""
    if entry is None:
        return ()
    return tuple(origin.reference for origin in entry.origins) or (f"{PREFIX}{entry.manifest.id}",)


def _asked(entry: CatalogEntry) -> CatalogEntry:
    return attrs.evolve(entry, asked=True)


def _named(question: Question) -> str:
    match question:
        case AcquireModel():
            return question.reference
        case RemoveModel() | ExportModel():
            return question.name
        case DropBlocks():
            return f"{question.blocks} of {question.model}"


async def _cancel_when_abandoned(letter: Letter[Question, ModelManifest], scope: trio.CancelScope) -> None:
    await letter.abandoned.wait()
    scope.cancel()
