"""Models from peers: their manifest by its hash, their shards chunk by chunk."""

from functools import partial
from pathlib import Path

import attrs

from meshnode.errors import FileError, MeshnodeError, SourceUnavailable, Unavailable, UnsupportedModel
from meshnode.files.acquisitions import Terms
from meshnode.files.catalog import CatalogEntry
from meshnode.files.foreign_manifests import decode_manifest
from meshnode.files.jobs import ModelJobs, Part
from meshnode.files.peer_ports import PeerShards
from meshnode.files.sources import Origin
from meshnode.files.transfer import ShardTransfer
from meshnode.types.ids import ModelId, short
from meshnode.types.manifest import ModelManifest, ShardDescriptor
from meshnode.types.model_names import ModelNames, matching

__all__ = ["PREFIX", "PeerCopies"]

PREFIX = "mesh:"
"""Of a reference to a model that peers hold; its name or its id follows."""

_MANIFEST_TRIES = 5


@attrs.define(eq=False)
class PeerCopies:
    """Makes copies of what peers hold. The caller sees to it that no two jobs work on one model at a time."""

    jobs: ModelJobs
    peers: PeerShards

    def find(self, reference: str) -> ModelNames | None:
        """Return the model that a reference, with PREFIX or without, names among those that peers hold.

        None for none, and for a name without PREFIX that could mean several. Raises SourceUnavailable with PREFIX.
        """
        name = reference.removeprefix(PREFIX)
        found = matching(name, self.peers.models())
        if found and (len(found) == 1 or found[0].rank(name) is not None):
            return found[0]
        if not reference.startswith(PREFIX):
            return None
        if found:
            raise SourceUnavailable(f"{name!r} could be {', '.join(each.name for each in found)}; say which")
        held = ", ".join(sorted({each.name for each in self.peers.models()})) or "nothing"
        raise SourceUnavailable(f"no peer has a model {name[:80]!r}; they have: {held}")

    async def acquire(self, model: ModelNames, part: Part, terms: Terms | None = None) -> ModelManifest:
        """Have `part` of a model here, besides what is here already.

        Raises FileError leafs, RequestError, and Unavailable where `terms` are not met.
        """
        reference = f"{PREFIX}{model.id}"
        entry = self.jobs.catalog.entry(ModelId(model.id))
        manifest = await self.manifest(ModelId(model.id)) if entry is None else entry.manifest
        if terms is not None:
            self._check(manifest, part, terms)
        fetch = partial(self._fetch, manifest, reference)
        return await self.jobs.adopt(manifest, Origin(reference, model.id), part, fetch, aliases=model.aliases)

    def _check(self, manifest: ModelManifest, part: Part, terms: Terms) -> None:
        count, catalog = manifest.config.block_count, self.jobs.catalog
        shards = {shard.id: shard for shard in manifest.shards if part.keeps(shard.kind, shard.block, count)}
        if terms.made.isdisjoint(shards):
            raise Unavailable(f"nothing that was made here belongs to blocks {part.blocks} of {manifest.name}")
        lacking = sum(shard.nbytes for shard in shards.values() if not catalog.is_held(shard.id))
        if lacking > terms.room:
            raise Unavailable(
                f"this node gives room for {max(terms.room, 0) / 1e6:.0f} MB more, and blocks {part.blocks} of "
                f"{manifest.name} take {lacking / 1e6:.0f}"
            )

    async def complete(self, entry: CatalogEntry) -> None:
        """Get what is kept of a model and not here. Raises SourceUnavailable and FileError."""
        await self.jobs.adopt(entry.manifest, None, None, partial(self._fetch, entry.manifest, entry.label))

    async def _fetch(
        self, manifest: ModelManifest, label: str, shards: tuple[ShardDescriptor, ...], staging: Path
    ) -> None:
        await self.transfer(manifest, label, shards).run(staging)

    def transfer(self, manifest: ModelManifest, label: str, shards: tuple[ShardDescriptor, ...]) -> ShardTransfer:
        """Return the transfer of some shards."""
        jobs = self.jobs
        report = partial(jobs.board.report, label, "downloading")
        return ShardTransfer(manifest, shards, self.peers, jobs.catalog.paths.transfers, jobs.lanes, report)

    async def manifest(self, model: ModelId) -> ModelManifest:
        """Ask one holder after the other. Raises SourceUnavailable with what they said."""
        reasons: list[str] = []
        for peer in sorted(self.peers.holders(model, None))[:_MANIFEST_TRIES]:
            try:
                async with self.peers.line(peer) as line:
                    data = await line.manifest(model)
                return await self.jobs.lanes.run("hashing", decode_manifest, data, model)
            except UnsupportedModel:
                raise
            except FileError as error:
                self.peers.accuse(peer, str(error))
                reasons.append(f"{short(peer)}: {error}")
            except MeshnodeError as error:
                reasons.append(f"{short(peer)}: {error}")
        raise SourceUnavailable(
            f"no peer gave the manifest of {short(model)} ({'; '.join(reasons) or 'nobody has it'})"
        )
