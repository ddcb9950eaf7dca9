"""What a simulated node has on its disk."""

import attrs

from meshnode.errors import UnknownModel
from meshnode.files.shard_file import shard_path
from meshnode.flow.latest import Latest
from meshnode.types.manifest import ShardKind

__all__ = ["Shelf"]


@attrs.define(eq=False)
class Shelf:
    """The catalog of a node: some blocks of the one model."""

    manifest: object
    folder: object
    blocks: range
    revision: Latest = attrs.field(factory=lambda: Latest(0))

    def manifests(self):
        return (self.manifest,) if self.blocks else ()

    def aliases(self, model):
        return ()

    def resolve(self, name):
        if not self.blocks or name not in (self.manifest.name, self.manifest.id):
            raise UnknownModel(f"there is no model {name!r}")
        return self.manifest

    def held(self, model):
        last = self.manifest.config.block_count
        kinds = {ShardKind.TOKENIZER}
        kinds |= {ShardKind.EMBEDDING} if 0 in self.blocks else set()
        kinds |= {ShardKind.HEAD} if last - 1 in self.blocks else set()
        return frozenset(
            shard.id
            for shard in self.manifest.shards
            if (shard.kind in kinds if shard.block is None else shard.block in self.blocks)
        )

    def path(self, shard):
        return shard_path(self.folder, shard)
