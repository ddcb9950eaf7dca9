"""What the AcquisitionManager does with one model: acquire, repair, remove.

Every method is safe to cancel at any point: what is half done lies in the staging folder and goes with it, and the steps that
make a model appear or disappear are shielded. The caller sees to it that no two of them work on one reference at a time; that no
two fetch the same bytes under different references is seen to here, and that none undoes what another one has settled.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

from meshnode.errors import FileError, MeshnodeError, RequestError, SourceUnavailable, UnknownModel
from meshnode.files.catalog import CatalogEntry, ModelCatalog
from meshnode.files.importing import import_model, import_shards
from meshnode.files.layout import is_kept
from meshnode.files.progress import ProgressBoard
from meshnode.files.sources import ModelOpener, Origin, ReportBytes, Source
from meshnode.files.staging import delete_quarantined, discard, make_staging, note_kept, park, publish
from meshnode.flow.lanes import Lanes
from meshnode.flow.turns import Turns
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, ShardId
from meshnode.types.manifest import ModelManifest, ShardDescriptor, ShardKind

__all__ = ["AcquireElsewhere", "FetchShards", "ModelJobs", "Part"]

FetchShards = Callable[[tuple[ShardDescriptor, ...], Path], Awaitable[object]]
"""Puts shards into a staging folder, verified."""

AcquireElsewhere = Callable[[Origin, "Part", CatalogEntry | None], Awaitable[ModelManifest | None]]
"""Acquires part of a model, which may be known, from others that have it; None: they are of no use."""

_Place = tuple[ShardKind, int | None]


@attrs.frozen
class Part:
    """What a node is to keep of a model."""

    blocks: BlockRange | None = None  # and what goes with the first and the last block of all; None: everything
    both_ends: bool = False  # embedding and head, whichever blocks

    def keeps(self, kind: ShardKind, block: int | None, block_count: int) -> bool:
        """Whether a shard belongs to it."""
        is_end = kind in (ShardKind.EMBEDDING, ShardKind.HEAD)
        return (is_end and self.both_ends) or is_kept(kind, block, self.blocks, block_count)


@attrs.frozen
class _Wish:
    """Which shards of a model are to be here, and which of them are: by place, since ids come out of the import."""

    before: frozenset[_Place] = frozenset()
    here: frozenset[_Place] = frozenset()
    more: bool = True  # besides those of before
    part: Part = Part()  # of which more

    def wants(self, shard: ShardDescriptor, manifest: ModelManifest) -> bool:
        return self.wants_place(shard.kind, shard.block, manifest.config.block_count)

    def needs(self, kind: ShardKind, block: int | None, block_count: int) -> bool:
        """Whether a shard has to be made, being wanted and not here."""
        return (kind, block) not in self.here and self.wants_place(kind, block, block_count)

    def wants_place(self, kind: ShardKind, block: int | None, block_count: int) -> bool:
        return (kind, block) in self.before or (self.more and self.part.keeps(kind, block, block_count))


@attrs.define(eq=False)
class ModelJobs:
    """The work itself, for whoever is the one writer of the catalog."""

    catalog: ModelCatalog
    lanes: Lanes
    board: ProgressBoard
    turns: Turns = attrs.field(factory=Turns)
    _settling: trio.Lock = attrs.field(factory=trio.Lock, init=False)  # names are given and shards moved one at a time

    async def acquire(
        self, source: Source, reference: str, part: Part, others: AcquireElsewhere | None = None
    ) -> ModelManifest:
        """Make sure that `part` of what `reference` names is held, besides what was held before; `others` are asked first.

        What is there and unchanged is not read again. Raises FileError leafs, RequestError for blocks the model does not
        have, StoreError; the catalog is as before then.
        """
        try:
            origin = await source.look(reference)
        except SourceUnavailable:
            entry = self.catalog.by_reference(reference)
            if entry is None or not self._is_complete(entry, part):
                raise
            manifest = entry.manifest  # the source is gone, but everything is here
        else:
            async with self.turns.of(origin.version):
                manifest = await self._acquire(source, origin, part, others)
        self.board.report(reference, "done", manifest.nbytes, manifest.nbytes)
        return manifest

    async def _acquire(
        self, source: Source, origin: Origin, part: Part, others: AcquireElsewhere | None
    ) -> ModelManifest:
        entry = self.known(origin)
        if others is not None and (entry is None or not self._is_complete(entry, part)):
            manifest = await others(origin, part, entry)
            if manifest is not None:
                return manifest
        if entry is None:
            return await self._import(source, origin, None, _Wish(part=part))
        if not self._is_complete(entry, part):
            held = self.catalog.held(entry.manifest.id)
            wish = _Wish(_places(entry, entry.wanted), _places(entry, held), part=part)
            return await self._import(source, origin, entry, wish)
        if entry.version_of(origin.reference) is None:  # it came under another name
            async with self._settling:
                now = self.catalog.entry(entry.manifest.id)
                if now is None or not self._is_complete(now, part):
                    raise _removed_meanwhile(entry.manifest)
                await self.catalog.put(attrs.evolve(now, origins=(origin, *now.origins)))
        return entry.manifest

    def known(self, origin: Origin) -> CatalogEntry | None:
        """Return the model that was made from this version of an origin, under whatever reference."""
        entry = self.catalog.by_reference(origin.reference)
        same = entry is not None and entry.version_of(origin.reference) == origin.version
        return entry if same else self.catalog.by_bytes(origin)

    async def repair(self, source: Source, entry: CatalogEntry, origin: Origin) -> None:
        """Make a model's missing shards again from one of its origins.

        Raises SourceUnavailable when that is gone or has changed, and what else `acquire` raises.
        """
        if (await source.look(origin.exact)).version != origin.version:
            raise SourceUnavailable(f"{origin.reference} is no longer what {entry.manifest.name} was made from")
        async with self.turns.of(origin.version):
            held = self.catalog.held(entry.manifest.id)
            wish = _Wish(_places(entry, entry.wanted), _places(entry, held), more=False)
            await self._import(source, origin, entry, wish)
        self.board.report(origin.reference, "done", entry.manifest.nbytes, entry.manifest.nbytes)

    async def adopt(
        self,
        manifest: ModelManifest,
        origin: Origin | None,
        part: Part | None,
        fetch: FetchShards,
        aliases: tuple[str, ...] = (),
        *,
        sampled: bool = False,
    ) -> ModelManifest:
        """Make sure that `part` (None: nothing more) of a known model is held, besides what was kept before.

        `sampled`: only samples say that it is what the origin has. `fetch` puts what is missing into the staging folder,
        verified. Raises what it raises, RequestError for blocks the model does not have, SourceUnavailable when a part has been
        removed meanwhile, StoreError; the catalog is as before then.
        """
        count = manifest.config.block_count
        if part is not None and part.blocks is not None and part.blocks.end > count:
            raise RequestError(f"the model has blocks 0:{count}; {part.blocks} asks for more", param="blocks")
        # Two would take them from each other, under whatever reference.
        async with self.turns.of(f"parts of {manifest.id}"):
            return await self._adopt(manifest, origin, part, fetch, aliases, sampled=sampled)

    async def _adopt(
        self,
        manifest: ModelManifest,
        origin: Origin | None,
        part: Part | None,
        fetch: FetchShards,
        aliases: tuple[str, ...],
        *,
        sampled: bool,
    ) -> ModelManifest:
        count = manifest.config.block_count
        entry, held = self.catalog.entry(manifest.id), self.catalog.held(manifest.id)
        before = () if entry is None else entry.wanted
        keeps = [] if part is None else [each for each in manifest.shards if part.keeps(each.kind, each.block, count)]
        more = tuple(dict.fromkeys(shard.id for shard in keeps))
        wanted = frozenset((*before, *more))
        missing = tuple(shard for shard in manifest.shards if shard.id in wanted and shard.id not in held)
        fetched = frozenset(shard.id for shard in missing)
        async with self.staging() as staging:
            await fetch(missing, staging)
            async with self._settling:
                # Under another reference somebody may have removed what was not missing; what is kept besides is merged.
                is_gone = part is None and self.catalog.entry(manifest.id) is None
                if is_gone or not all(shard in fetched or self.catalog.is_held(shard) for shard in more):
                    raise _removed_meanwhile(manifest)
                origins = () if origin is None else (origin,)
                new = CatalogEntry(manifest, more, origins, aliases, sampled=sampled)
                manifest = await self._settle(new, staging)
        label = entry.label if origin is None and entry is not None else (origin or Origin(manifest.name, "")).reference
        self.board.report(label, "done", manifest.nbytes, manifest.nbytes)
        return manifest

    async def revise(self, model: ModelId, revised: Callable[[CatalogEntry], CatalogEntry]) -> None:
        """Replace what is known of a model, if it is still there, by what has been found out. Raises StoreError."""
        async with self._settling:
            entry = self.catalog.entry(model)
            if entry is not None and (new := revised(entry)) != entry:
                await self.catalog.put(new)

    async def remove(self, entry: CatalogEntry) -> None:
        """Forget a model and delete the shards that no other model keeps.

        Raises UnknownModel when it is gone already, FileError or StoreError; it is kept then.
        """
        async with self._settling, self.staging() as staging:
            await self._remove(self._still(entry), staging)

    async def _remove(self, entry: CatalogEntry, staging: Path) -> None:
        model, paths = entry.manifest.id, self.catalog.paths
        doomed = self.catalog.only_wanted_by(model)
        with trio.CancelScope(shield=True):
            try:
                await self.lanes.run("disk", park, staging, paths.shards, doomed)
                await self.catalog.remove(model)
            except MeshnodeError:
                await self.lanes.run("disk", publish, staging, paths.shards, doomed)
                raise
            await self.lanes.run("disk", delete_quarantined, paths.quarantine, doomed)

    async def shrink(self, entry: CatalogEntry, blocks: BlockRange) -> None:
        """Keep a model without these blocks, or not at all if no weights are left.

        Raises UnknownModel when it is gone already, FileError or StoreError; all is kept then.
        """
        manifest, paths = entry.manifest, self.catalog.paths
        count = manifest.config.block_count
        weights = {shard.id: shard for shard in manifest.shards if shard.kind is not ShardKind.TOKENIZER}
        gone = {shard.id for shard in weights.values() if is_kept(shard.kind, shard.block, blocks, count)}
        async with self._settling, self.staging() as staging:
            now = self._still(entry)
            wanted = tuple(shard for shard in now.wanted if shard not in gone)
            if weights.keys().isdisjoint(wanted):
                await self._remove(now, staging)
                return
            doomed = tuple(shard for shard in self.catalog.only_wanted_by(manifest.id) if shard in gone)
            with trio.CancelScope(shield=True):
                try:
                    await self.lanes.run("disk", park, staging, paths.shards, doomed)
                    await self.catalog.put(attrs.evolve(now, wanted=wanted))
                except MeshnodeError:
                    await self.lanes.run("disk", publish, staging, paths.shards, doomed)
                    raise
                self.catalog.forget_held(doomed)

    def _still(self, entry: CatalogEntry) -> CatalogEntry:
        """Return what has become of an entry while others settled. Raises UnknownModel."""
        now = self.catalog.entry(entry.manifest.id)
        if now is None:
            raise UnknownModel(f"{entry.manifest.name} has been removed meanwhile", param="name")
        return now

    async def make(
        self,
        source: Source,
        origin: Origin,
        manifest: ModelManifest,
        shards: tuple[ShardDescriptor, ...],
        staging: Path,
    ) -> None:
        """Make shards of a known model in a staging folder. Raises SourceUnavailable for other bytes, and FileError leafs."""
        wish = _Wish(frozenset((shard.kind, shard.block) for shard in shards), more=False)
        async with self._made(source, origin, manifest, wish, staging):
            pass

    async def _import(self, source: Source, origin: Origin, entry: CatalogEntry | None, wish: _Wish) -> ModelManifest:
        known = None if entry is None else entry.manifest
        async with self.staging() as staging, self._made(source, origin, known, wish, staging) as (manifest, aliases):
            wanted = tuple(dict.fromkeys(shard.id for shard in manifest.shards if wish.wants(shard, manifest)))
            async with self._settling:
                if entry is None or wish.here <= _places(entry, self.catalog.held(manifest.id)):
                    return await self._settle(CatalogEntry(manifest, wanted, (origin,), aliases), staging)
        raise _removed_meanwhile(manifest)

    @asynccontextmanager
    async def _made(
        self, source: Source, origin: Origin, known: ModelManifest | None, wish: _Wish, staging: Path
    ) -> AsyncIterator[tuple[ModelManifest, tuple[str, ...]]]:
        """Make the shards that are needed; yields the manifest and further names. What has come is kept until it is left well."""
        reference = origin.reference

        def downloading(done: int, total: int) -> None:
            self.board.report(reference, "downloading", done, total)

        # In the importing thread, which it ends when the task is cancelled.
        def importing(done: int, total: int) -> None:
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(self.board.report, reference, "importing", done, total)

        needs = None if known is None else partial(wish.needs, block_count=known.config.block_count)
        async with source.prepared(origin.exact, staging, downloading, needs) as opener:
            manifest, aliases = await self.lanes.run("hashing", _read, opener, staging, wish, known, importing)
            version = origin.version if origin.pinned else manifest.source_version
            yield attrs.evolve(manifest, source_version=version), aliases

    async def _settle(self, new: CatalogEntry, staging: Path) -> ModelManifest:
        """Put a model into the catalog and its shards in their place, both or neither."""
        model, shards = new.manifest.id, self.catalog.paths.shards
        previous = self.catalog.entry(model)
        merged = self._merge(new, previous)
        await self.lanes.run("disk", note_kept, staging, merged.wanted)
        with trio.CancelScope(shield=True):
            await self.catalog.put(merged)
            try:
                placed = await self.lanes.run("disk", publish, staging, shards, merged.wanted)
            except FileError:
                if previous is None:
                    await self.lanes.run("disk", park, staging, shards, self.catalog.only_wanted_by(model))
                    await self.catalog.remove(model)
                else:
                    await self.catalog.put(previous)
                raise
        self.catalog.mark_held(shard for shard in merged.manifest.shards if shard.id in placed)
        return merged.manifest

    def _merge(self, new: CatalogEntry, previous: CatalogEntry | None) -> CatalogEntry:
        """Name a new model; let one that is here already keep its name and shards, and answer to the new names too."""
        catalog, model = self.catalog, new.manifest.id
        if previous is None:
            name = catalog.free_name(new.manifest.name, model)
            return attrs.evolve(new, manifest=attrs.evolve(new.manifest, name=name))
        own = new.manifest.name
        aliases = dict.fromkeys([*previous.aliases, *new.aliases, *([own] if catalog.is_free(own, model) else [])])
        return attrs.evolve(
            new,
            manifest=attrs.evolve(
                previous.manifest, source_version=new.manifest.source_version or previous.manifest.source_version
            ),
            wanted=tuple(dict.fromkeys([*previous.wanted, *new.wanted])),
            origins=(*new.origins, *(old for old in previous.origins if new.version_of(old.reference) is None)),
            aliases=tuple(alias for alias in aliases if alias != previous.manifest.name),
            asked=previous.asked,
            sampled=new.sampled or previous.sampled,
        )

    def _is_complete(self, entry: CatalogEntry, part: Part) -> bool:
        manifest, held = entry.manifest, self.catalog.held(entry.manifest.id)
        count = manifest.config.block_count
        return (part.blocks is None or part.blocks.end <= count) and all(
            shard.id in held
            for shard in manifest.shards
            if shard.id in entry.wanted or part.keeps(shard.kind, shard.block, count)
        )

    @asynccontextmanager
    async def staging(self) -> AsyncIterator[Path]:
        """Make a folder for unfinished things; leaving deletes it. Raises FileError."""
        folder = await self.lanes.run("disk", make_staging, self.catalog.paths.partial)
        try:
            yield folder
        finally:
            with trio.CancelScope(shield=True):
                await self.lanes.run("disk", discard, folder)


def _removed_meanwhile(manifest: ModelManifest) -> SourceUnavailable:
    return SourceUnavailable(f"a part of {manifest.name} has been removed meanwhile; add it again")


def _places(entry: CatalogEntry, shards: Collection[ShardId]) -> frozenset[_Place]:
    return frozenset((shard.kind, shard.block) for shard in entry.manifest.shards if shard.id in shards)


def _read(
    opener: ModelOpener, staging: Path, wish: _Wish, known: ModelManifest | None, report: ReportBytes
) -> tuple[ModelManifest, tuple[str, ...]]:
    """Write the shards that are needed. All of a model is read for its manifest, unless that is known."""
    with opener() as model:
        count = model.config.block_count
        blocks = wish.part.blocks
        if blocks is not None and blocks.end > count:
            raise RequestError(f"the model has blocks 0:{count}; {blocks} asks for more", param="blocks")
        if known is None:
            keep = partial(wish.needs, block_count=count)
            return import_model(model, staging, keep, report), model.aliases
        if model.config != known.config:
            raise SourceUnavailable(f"the source is no longer what {known.name} was made from; remove it first")
        import_shards(model, known, partial(wish.needs, block_count=count), staging, report)
        return known, model.aliases
