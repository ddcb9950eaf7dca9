"""Models of a hub from peers that have them, and from the hub only what no peer gives.

A manifest says from which version of a repository its model was made, and whoever sends one may lie. So a manifest that this
node did not make is taken for the hub's only if the headers on the hub say the same of every shard, and if the weights are the
hub's: by its own hashes where all of them are here, by samples of all shards where a part is. Else everything comes from the hub.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import attrs
import structlog
from blake3 import blake3

from meshnode.errors import InvalidModelFile, MeshnodeError, SourceUnavailable
from meshnode.files.catalog import CatalogEntry
from meshnode.files.file_proof import differences
from meshnode.files.hub_mirror import forget_mirror
from meshnode.files.hub_outline import Outline
from meshnode.files.hub_proof import fetch_sample, prove
from meshnode.files.hub_reference import HubReference
from meshnode.files.hub_source import HubSource
from meshnode.files.jobs import ModelJobs, Part
from meshnode.files.part_file import forget_parts
from meshnode.files.peer_copies import PeerCopies
from meshnode.files.peer_ports import holders_of
from meshnode.files.salvage import Salvage, blocks_from_parts, is_anything_begun, parts_from_blocks
from meshnode.files.samples import Sample
from meshnode.files.shard_file import shard_file_name
from meshnode.files.share_making import ShareMaker
from meshnode.files.sources import Origin
from meshnode.flow.turns import Turns
from meshnode.types.ids import ModelId, ShardId, short
from meshnode.types.manifest import ModelManifest, ShardDescriptor

__all__ = ["HubCopies", "NotTheSame"]

_MOST_ASKED = 16  # manifests of models of one repository
_log = structlog.get_logger(__name__)


class NotTheSame(MeshnodeError):
    """What peers have cannot be taken for what the hub has."""


@attrs.frozen(eq=False)
class HubCopies:
    """Looks among peers for what a hub has."""

    source: HubSource
    jobs: ModelJobs
    copies: PeerCopies
    maker: ShareMaker  # asks the hub for samples
    asked: Turns = attrs.field(factory=Turns, init=False)  # peers for samples: one has few connections for us

    async def acquire(self, origin: Origin, part: Part, entry: CatalogEntry | None) -> ModelManifest | None:
        """Have `part` of a model here, which `entry` knows already or peers may know; None when peers are of no use.

        Raises FileError leafs, RequestError, StoreError.
        """
        if entry is not None:
            return await self._adopt(origin, part, entry.manifest, None)
        for manifest, outline in await self.candidates(origin):
            try:
                return await self._adopt(origin, part, manifest, outline)
            except NotTheSame as error:
                _log.warning("not the hub's model", reference=origin.reference, id=short(manifest.id), why=str(error))
        return None

    async def repair(self, origin: Origin, manifest: ModelManifest) -> None:
        """Have again what is kept of a model and not here. Raises SourceUnavailable when neither has it, and FileError."""
        async with self.jobs.turns.of(origin.version):
            await self.jobs.adopt(manifest, None, None, partial(self._fetch, origin, manifest, None))

    async def confirm(self, model: ModelId) -> None:
        """Prove a model by the hub's own hashes, once all of it is here, that samples alone have spoken for.

        Raises FileError, InvalidModelFile for one that is something else, which is no more said to be of the hub then. Where
        the hub does not answer, the next who asks for the model has it proved.
        """
        entry, held = self.jobs.catalog.entry(model), self.jobs.catalog.held(model)
        if entry is None or not entry.sampled or not held.issuperset(shard.id for shard in entry.manifest.shards):
            return
        for origin in [each for each in entry.origins if each.pinned]:
            try:
                await self._confirm(origin, entry.manifest)
            except SourceUnavailable as error:
                _log.info("model not proved", model=entry.manifest.name, error=str(error))

    async def _confirm(self, origin: Origin, manifest: ModelManifest) -> None:
        async with self.jobs.staging() as scratch:
            outline = await self.source.outline(origin.exact, scratch)
        said = outline.described(manifest)
        paths = {shard: self.jobs.catalog.path(hashed.id) for shard, hashed in said.items()}
        different = await differences(self.maker, outline.whole, paths)
        await self._forget_headers(outline)
        if different:
            await self.jobs.revise(manifest.id, _disowned)
            raise InvalidModelFile(
                f"{manifest.name} is not what {origin.exact} is: {different[0]} is another one there, and samples had not shown "
                f"it. It stays as a model of its own; remove {manifest.name}, and add {origin.reference} again"
            )
        if different is not None:
            await self.jobs.revise(manifest.id, _proved)

    async def _adopt(
        self, origin: Origin, part: Part, manifest: ModelManifest, outline: Outline | None
    ) -> ModelManifest:
        is_proved = False

        async def fetch(shards: tuple[ShardDescriptor, ...], staging: Path) -> None:
            nonlocal is_proved
            is_proved = await self._fetch(origin, manifest, outline, shards, staging)

        aliases, is_news = () if outline is None else outline.aliases, outline is not None
        adopted = await self.jobs.adopt(manifest, origin, part, fetch, aliases=aliases, sampled=is_news)
        if is_proved:
            await self.jobs.revise(adopted.id, _proved)
        return adopted

    async def candidates(self, origin: Origin) -> list[tuple[ModelManifest, Outline]]:
        """Return manifests that are said to be of this version, and are as far as the headers tell."""
        said = await self._said_to_be(origin)
        if not said:
            return []
        async with self.jobs.staging() as scratch:
            outline = await self.source.outline(origin.exact, scratch)
        tokenizer = blake3(outline.tokenizer).hexdigest()
        found: list[tuple[ModelManifest, Outline]] = []
        for manifest in said:
            try:
                outline.described(manifest)
            except SourceUnavailable:
                continue
            if manifest.shards[0].id == tokenizer:
                facts = attrs.evolve(manifest, name=outline.name, license=outline.license, source=outline.origin)
                found.append((facts, outline))
        return found

    async def compare(self, manifest: ModelManifest, outline: Outline) -> None:
        """Test what is here or with peers of a model that is said to be the hub's.

        Raises NotTheSame, SourceUnavailable, FileError.
        """
        held, peers = self.jobs.catalog.held(manifest.id), self.copies.peers
        nowhere = [
            shard.id for shard in manifest.shards if shard.id not in held and not holders_of(peers, manifest.id, shard)
        ]
        await self._prove(outline, manifest, {}, frozenset(nowhere))

    async def _said_to_be(self, origin: Origin) -> list[ModelManifest]:
        here = {entry.manifest.id: entry.manifest for entry in self.jobs.catalog.entries()}
        manifests = list(here.values())
        repository = HubReference.parse(origin.reference).repository
        for model in sorted(self.copies.peers.of_repository(repository) - here.keys())[:_MOST_ASKED]:
            try:
                manifests.append(await self.copies.manifest(model))
            except MeshnodeError as error:
                _log.info("manifest not had", model=short(model), why=str(error))
        return [manifest for manifest in manifests if manifest.source_version == origin.version]

    async def _fetch(
        self,
        origin: Origin,
        manifest: ModelManifest,
        outline: Outline | None,
        shards: tuple[ShardDescriptor, ...],
        staging: Path,
    ) -> bool:
        """Put shards into `staging`, from peers as far as they have them, and return whether the hub's hashes prove the model.

        What has come from peers is kept if the hub fails.
        """
        is_proved = False
        jobs, peers, folder = self.jobs, self.copies.peers, self.jobs.catalog.paths.transfers
        had = tuple(shard for shard in shards if holders_of(peers, manifest.id, shard))
        known = outline or await self._outline_for_salvage(origin, manifest, shards)
        await self._salvage(parts_from_blocks, known, manifest, had)
        async with self.copies.transfer(manifest, origin.reference, had).gathered() as parts:
            came = {part.shard.id: part.path for part in parts}
            rest = tuple(shard for shard in shards if shard.id not in came)
            if outline is not None:
                is_proved = await self._prove(outline, manifest, came, frozenset(shard.id for shard in rest))
            if rest:
                if outline is None:
                    # Else the manifest is not proved yet, and must not spoil what has come from the hub.
                    await self._salvage(blocks_from_parts, known, manifest, rest)
                try:
                    await jobs.make(self.source, origin, manifest, rest, staging)
                except SourceUnavailable as error:  # has other bytes, or is not there, which is found out next
                    if outline is None:
                        raise
                    raise NotTheSame(str(error)) from error
                await jobs.lanes.run("disk", forget_parts, folder, frozenset(shard.id for shard in rest), 0.0)
                here = jobs.catalog.held(manifest.id) | came.keys() | {shard.id for shard in rest}
                if outline is not None and here >= {
                    shard.id for shard in manifest.shards
                }:  # who lies keeps one block back
                    made = {shard.id: staging / shard_file_name(shard.id) for shard in rest}
                    is_proved = await self._prove(outline, manifest, came | made, frozenset())
            elif known is not None:
                await self._forget_headers(known)
            for part in parts:
                await jobs.lanes.run("disk", part.finish, staging)
        from_peers = sum(part.shard.nbytes for part in parts)
        from_hub = sum(shard.nbytes for shard in rest)
        _log.info("shards fetched", reference=origin.reference, from_peers=from_peers, from_hub=from_hub)
        return is_proved

    async def _outline_for_salvage(
        self, origin: Origin, manifest: ModelManifest, shards: tuple[ShardDescriptor, ...]
    ) -> Outline | None:
        """Return what says how shards and files go together, if a part of either has come and the hub answers."""
        jobs, folder = self.jobs, self.jobs.catalog.paths.transfers
        if not await jobs.lanes.run("disk", is_anything_begun, folder, shards):
            return None
        try:
            async with jobs.staging() as scratch:
                outline = await self.source.outline(origin.exact, scratch)
            outline.described(manifest)
        except SourceUnavailable as error:
            _log.info("what has come of the files is left", reference=origin.reference, why=str(error))
            return None
        return outline

    async def _salvage(
        self, how: Salvage, outline: Outline | None, manifest: ModelManifest, shards: tuple[ShardDescriptor, ...]
    ) -> None:
        if outline is None:
            return
        lacking = {(shard.kind, shard.block): shard for shard in shards}
        said = {
            each: lacking[each.kind, each.block]
            for each in outline.described(manifest)
            if (each.kind, each.block) in lacking
        }
        await self.jobs.lanes.run("hashing", how, outline.whole, said, self.jobs.catalog.paths.transfers)

    async def _forget_headers(self, outline: Outline) -> None:
        """Delete what has come of the files, where no more is to come. Raises FileError."""
        for file in outline.whole.files:
            await self.jobs.lanes.run("disk", forget_mirror, self.jobs.catalog.paths.transfers, file.oid)

    async def _prove(
        self, outline: Outline, manifest: ModelManifest, came: Mapping[ShardId, Path], coming: frozenset[ShardId]
    ) -> bool:
        """Test all shards, also those that are not wanted here, but for those that are going to be made from the hub's bytes.

        Where all are here, the hub's hashes of its files say it for certain: return whether they do. Raises NotTheSame,
        SourceUnavailable.
        """
        catalog = self.jobs.catalog
        here = {shard: catalog.path(shard) for shard in catalog.held(manifest.id)} | dict(came)
        where = {shard.id: shard for shard in manifest.shards}

        async def sampled(sample: Sample) -> bytes:
            if (path := here.get(sample.hashed.id)) is not None:
                return await self.jobs.lanes.run("disk", _read, path, sample.start, sample.end)
            return await self._ask(manifest, where[sample.hashed.id], sample)

        said = {shard: hashed for shard, hashed in outline.described(manifest).items() if hashed.id not in coming}
        paths = {shard: here[hashed.id] for shard, hashed in said.items() if hashed.id in here}
        if len(paths) == len(outline.whole.shards):
            different = await differences(self.maker, outline.whole, paths)
            if different:
                raise NotTheSame(f"{different[0]}, put together again, has another hash than the hub says")
            if different is not None:
                return True
        try:
            await prove(self.maker, outline.whole, said, sampled)
        except SourceUnavailable:
            raise
        except MeshnodeError as error:
            raise NotTheSame(str(error)) from error
        return False

    async def _ask(self, manifest: ModelManifest, shard: ShardDescriptor, sample: Sample) -> bytes:
        peers = self.copies.peers
        for peer in sorted(holders_of(peers, manifest.id, shard)):
            try:
                async with self.asked.of(peer), peers.line(peer) as line:
                    return await fetch_sample(line, sample)
            except MeshnodeError as error:
                _log.info("sample not had", peer=short(peer), why=str(error))
        raise NotTheSame(f"nobody gives {sample.shard.place} to compare it")


def _proved(entry: CatalogEntry) -> CatalogEntry:
    return attrs.evolve(entry, sampled=False)


def _disowned(entry: CatalogEntry) -> CatalogEntry:
    """Return a model that does not say any more that it came from a hub, to members neither."""
    manifest = attrs.evolve(entry.manifest, source=None, source_version=None)
    return attrs.evolve(
        entry, manifest=manifest, origins=tuple(each for each in entry.origins if not each.pinned), sampled=False
    )


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)
