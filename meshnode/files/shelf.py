"""What this node gives to peers: verified shards, and the manifests of the models they belong to."""

from pathlib import Path

import attrs

from meshnode.errors import Unavailable
from meshnode.files.catalog import ModelCatalog
from meshnode.files.foreign_manifests import encode_manifest
from meshnode.types.ids import ModelId, ShardId, short

__all__ = ["CatalogShelf"]


@attrs.frozen(eq=False)
class CatalogShelf:
    """Reads the catalog."""

    catalog: ModelCatalog

    def path(self, shard: ShardId) -> Path:
        """Return where a verified shard lies. Raises Unavailable for one that is not here."""
        if not self.catalog.is_held(shard):
            raise Unavailable(f"shard {short(shard)} is not here, or not verified yet")
        return self.catalog.path(shard)

    def manifest(self, model: ModelId) -> bytes:
        """Return a manifest as it travels. Raises Unavailable for one that is not here."""
        entry = self.catalog.entry(model)
        if entry is None:
            raise Unavailable(f"model {short(model)} is not here")
        return encode_manifest(entry.manifest)
