"""The catalog: which models this node knows, which of their shards it keeps, and which of those are verified.

«Held» means verified since this process started: a catalog that has just been opened holds nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import attrs

from meshnode.config.paths import DataPaths
from meshnode.errors import UnknownModel
from meshnode.files.shard_file import shard_path
from meshnode.files.sources import Origin
from meshnode.flow.latest import Latest
from meshnode.observe.metrics import Metrics
from meshnode.store.protocol import KeyValueStore
from meshnode.store.tables import Table, struct_codec, text_codec
from meshnode.types.ids import ModelId, ShardId
from meshnode.types.manifest import ModelManifest, ShardDescriptor
from meshnode.types.model_names import ModelNames, matching, meant_by

__all__ = ["CatalogEntry", "CatalogView", "ModelCatalog", "open_catalog"]

_PREFIX = b"models/"
_SUFFIX_DIGITS = 6


@attrs.frozen
class CatalogEntry:
    """One model: its manifest, which shards this node keeps, and where it came from."""

    manifest: ModelManifest
    wanted: tuple[ShardId, ...]
    origins: tuple[Origin, ...] = ()  # newest first; empty: what it came from is something else now
    aliases: tuple[str, ...] = ()  # further names
    asked: bool = False  # a person wants it here
    sampled: bool = False  # samples alone have borne out, so far, that it is what a hub has

    @property
    def label(self) -> str:
        """How its progress is reported."""
        return self.origins[0].reference if self.origins else self.manifest.name

    def version_of(self, reference: str) -> str | None:
        """Return the version of `reference` this model was made from, if it was."""
        return next((origin.version for origin in self.origins if reference in (origin.reference, origin.pinned)), None)


class CatalogView(Protocol):
    """What readers see of the catalog. Reading does not block, and the answers are values of their own."""

    @property
    def revision(self) -> Latest[int]:
        """Grows with every change."""
        ...

    def manifests(self) -> tuple[ModelManifest, ...]:
        """Return all models by name."""
        ...

    def resolve(self, name: str) -> ModelManifest:
        """Return the model with this id, name or alias, or the only one whose id or name begins so. Raises UnknownModel."""
        ...

    def held(self, model: ModelId) -> frozenset[ShardId]:
        """Return the model's verified shards; none for a model that is not there."""
        ...

    def path(self, shard: ShardId) -> Path:
        """Return where a held shard lies."""
        ...


@attrs.define(eq=False)
class ModelCatalog:
    """The table of models in the store and the set of verified shards. One writer: the AcquisitionManager."""

    paths: DataPaths
    _store: KeyValueStore
    _table: Table[str, CatalogEntry]
    _metrics: Metrics
    _configured_aliases: Mapping[str, str]  # alias -> model name, from the settings
    _entries: dict[ModelId, CatalogEntry]
    _held: dict[ShardId, int] = attrs.field(factory=dict, init=False)  # verified shards and their sizes
    # Models that were here at the start, and are still to be verified, or what is damaged of them to be had again.
    _unchecked: set[ModelId] = attrs.field(
        default=attrs.Factory(lambda self: set(self._entries), takes_self=True), init=False
    )
    revision: Latest[int] = attrs.field(factory=lambda: Latest(0), init=False)

    def manifests(self) -> tuple[ModelManifest, ...]:
        """Return all models by name."""
        return tuple(sorted((entry.manifest for entry in self._entries.values()), key=lambda manifest: manifest.name))

    def entries(self) -> tuple[CatalogEntry, ...]:
        """Return all entries by name of the model."""
        return tuple(self._entries[manifest.id] for manifest in self.manifests())

    def entry(self, model: ModelId) -> CatalogEntry | None:
        """Return the entry of a model, if it is there."""
        return self._entries.get(model)

    def resolve(self, name: str) -> ModelManifest:
        """Return the model with this id, name or alias, or the only one whose id or name begins so. Raises UnknownModel."""
        name = meant_by(name, self._configured_aliases)
        known = [_names(entry) for entry in self.entries()]
        found = matching(name, known)
        if not found or (len(found) > 1 and found[0].rank(name) is None):
            raise UnknownModel(self._unknown(name, [names.name for names in found]), param="model")
        return self._entries[ModelId(found[0].id)].manifest

    def aliases(self, model: ModelId) -> tuple[str, ...]:
        """Return other names of a model: its own and those of the settings."""
        entry = self._entries.get(model)
        return () if entry is None else (*entry.aliases, *self.configured_aliases(_names(entry)))

    def configured_aliases(self, names: ModelNames) -> tuple[str, ...]:
        """Return what the settings call a model, of this node or another, beside its own names."""
        return tuple(
            alias for alias, name in self._configured_aliases.items() if name in names.all and alias not in names.all
        )

    def _unknown(self, name: str, candidates: list[str]) -> str:
        if candidates:
            return f"the model name {name[:80]!r} is ambiguous: {', '.join(candidates)}"
        there_is = ", ".join(_names(entry).listed() for entry in self.entries()) or "none yet"
        return f"there is no model {name[:80]!r}; models here: {there_is}"

    def held(self, model: ModelId) -> frozenset[ShardId]:
        """Return the model's verified shards; none for a model that is not there."""
        entry = self._entries.get(model)
        return (
            frozenset(shard.id for shard in entry.manifest.shards if shard.id in self._held) if entry else frozenset()
        )

    def unchecked(self) -> frozenset[ModelId]:
        """Return the models of which more may be here than is held: they are being verified, or waiting for it."""
        return frozenset(self._unchecked & self._entries.keys())

    def is_held(self, shard: ShardId) -> bool:
        """Whether a shard is here and verified."""
        return shard in self._held

    def path(self, shard: ShardId) -> Path:
        """Return where a held shard lies."""
        return shard_path(self.paths.shards, shard)

    def asked(self) -> frozenset[ModelId]:
        """Return the models that a person wants here."""
        return frozenset(model for model, entry in self._entries.items() if entry.asked)

    def by_reference(self, reference: str) -> CatalogEntry | None:
        """Return the entry that came from `reference`."""
        return next((entry for entry in self._entries.values() if entry.version_of(reference) is not None), None)

    def by_bytes(self, origin: Origin) -> CatalogEntry | None:
        """Return the entry that came from the very bytes of `origin`, under whatever reference, if its version tells them."""
        same = (
            entry
            for entry in self._entries.values()
            if any((each.version, bool(each.pinned)) == (origin.version, True) for each in entry.origins)
        )
        return next(same, None) if origin.pinned else None

    def wanted(self) -> frozenset[ShardId]:
        """Return the shards that some model keeps."""
        return frozenset(shard for entry in self._entries.values() for shard in entry.wanted)

    def only_wanted_by(self, model: ModelId) -> tuple[ShardId, ...]:
        """Return the shards that nobody keeps once this model is gone."""
        others = {shard for entry in self._entries.values() if entry.manifest.id != model for shard in entry.wanted}
        return tuple(dict.fromkeys(shard for shard in self._entries[model].wanted if shard not in others))

    def is_free(self, name: str, model: ModelId) -> bool:
        """Say whether no other model answers to `name`."""
        return not any(name in _names(entry).all for entry in self._entries.values() if entry.manifest.id != model)

    def free_name(self, name: str, model: ModelId) -> str:
        """Return `name`, with the beginning of the model's id if another model answers to that name already."""
        return name if self.is_free(name, model) else f"{name}-{model[:_SUFFIX_DIGITS]}"

    async def put(self, entry: CatalogEntry) -> None:
        """Add or replace a model, durably. References and aliases it claims are taken from the models that had them.

        Raises StoreError; nothing has changed then. Cancellation: as KeyValueStore.commit, so shield it where it matters.
        """
        changed = {entry.manifest.id: entry}
        for model, other in self._entries.items():
            without = _without_claims(other, entry)
            if model != entry.manifest.id and without != other:
                changed[model] = without
        batch = self._store.batch()
        for model, row in changed.items():
            self._table.put_in(batch, model, row)
        await self._store.commit(batch, sync=True)
        self._entries |= changed
        self._bump()

    async def remove(self, model: ModelId) -> None:
        """Forget a model, durably; the files are the caller's business. Raises StoreError; nothing has changed then."""
        await self._table.delete(model, sync=True)
        self._entries.pop(model, None)
        wanted = self.wanted()
        self._held = {shard: nbytes for shard, nbytes in self._held.items() if shard in wanted}
        self._bump()

    def mark_held(self, shards: Iterable[ShardDescriptor]) -> None:
        """State that these shards have been verified."""
        self._held |= {shard.id: shard.nbytes for shard in shards}
        self._bump()

    def forget_held(self, shards: Iterable[ShardId]) -> None:
        """State that these shards are not here any more."""
        gone = frozenset(shards)
        self._held = {shard: nbytes for shard, nbytes in self._held.items() if shard not in gone}
        self._bump()

    def note_checked(self, model: ModelId) -> None:
        """State that no more of a model is here than is held."""
        self._unchecked.discard(model)

    def count_quarantined(self) -> None:
        """Count a shard that was set aside."""
        self._metrics.files_quarantined_total.inc()

    def _bump(self) -> None:
        self._metrics.files_shards_held.set(len(self._held))
        self._metrics.files_shards_bytes.set(sum(self._held.values()))
        self.revision.set(self.revision.value + 1)


async def open_catalog(
    store: KeyValueStore, paths: DataPaths, metrics: Metrics, aliases: Mapping[str, str]
) -> ModelCatalog:
    """Read the catalog from the store. `aliases` are those of the settings. Raises StoreError."""
    table = Table(store, _PREFIX, text_codec(), struct_codec(CatalogEntry))
    await table.prepare()
    return ModelCatalog(paths, store, table, metrics, aliases, {ModelId(key): entry for key, entry in table.items()})


def _names(entry: CatalogEntry) -> ModelNames:
    return ModelNames(entry.manifest.id, entry.manifest.name, entry.aliases)


def _without_claims(other: CatalogEntry, entry: CatalogEntry) -> CatalogEntry:
    claimed = {origin.reference for origin in entry.origins}
    # What a reference named before, its pinned form names for good: the model can still be made again from there.
    pinned = (
        origin if origin.reference not in claimed else attrs.evolve(origin, reference=origin.pinned)
        for origin in other.origins
    )
    kept = {origin.reference: origin for origin in pinned if origin.reference and origin.reference not in claimed}
    return attrs.evolve(
        other,
        aliases=tuple(alias for alias in other.aliases if alias not in entry.aliases),
        origins=tuple(kept.values()),
    )
