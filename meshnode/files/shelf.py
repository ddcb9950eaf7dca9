"""What this node gives to peers: verified shards, the manifests of the models they belong to, and help with models from hubs."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

import attrs
import structlog

from meshnode.errors import FileError, Overloaded, Unavailable
from meshnode.files.catalog import ModelCatalog
from meshnode.files.foreign_manifests import encode_manifest
from meshnode.files.hub_shares import HubShare, decode_share, encode_made
from meshnode.files.shard_file import HashedBytes
from meshnode.files.share_making import ShareMaker
from meshnode.files.share_records import ShareRecord
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, ShardId, short

__all__ = ["CatalogShelf", "Helping", "Keeper"]

_log = structlog.get_logger(__name__)


class Keeper(Protocol):
    """Looks after what this node holds of its own accord."""

    def room(self) -> int:
        """Return how many bytes more this node gives room for."""
        ...

    async def keep(self, model: ModelId, blocks: BlockRange, block_count: int, made: Collection[HashedBytes]) -> None:
        """Have blocks of a model held, some shards of which were `made` here. Raises MeshnodeError leafs."""
        ...


@attrs.define(eq=False)
class Helping:
    """Makes shares of models for others, one at a time; those that are not kept yet lie side by side, as far as there is room."""

    maker: ShareMaker  # without a token: what it opens is the owner's business, and no peer's
    keeper: Keeper
    made: dict[ShardId, Path] = attrs.field(factory=dict, init=False)  # for whoever wants to see it
    _is_busy: bool = attrs.field(default=False, init=False)

    async def make(self, asker: PeerId, share: bytes, report: Callable[[int, int], None]) -> bytes:
        """Make a share and return what it hashes to. Raises RequestError, Unavailable, Overloaded."""
        wanted, room = decode_share(share), self.keeper.room()
        if self._is_busy:
            raise Overloaded("this node is making a share already")
        self._is_busy = True
        try:
            await self.maker.lanes.run("disk", self._make_room, asker, wanted, room)
            made = await self.maker.make(wanted, report)
        except FileError as error:
            raise Unavailable(str(error)) from error
        finally:
            self._is_busy = False
        self.made |= {hashed.id: self.maker.records.part(hashed) for hashed in made}
        return encode_made(made)

    async def keep(self, asker: PeerId, model: ModelId, blocks: BlockRange, block_count: int) -> None:
        """Have blocks of a model held of which this node has made shards for the asker. Raises MeshnodeError leafs."""
        records = await self.maker.lanes.run("disk", list, self.maker.records.all())
        made = [hashed for record in records if asker in record.askers for hashed in record.made]
        if not made:
            raise Unavailable("no share that this node has made for you lies here; have one made first")
        await self.keeper.keep(model, blocks, block_count, made)

    async def forget_kept(self, is_held: Callable[[ShardId], bool]) -> None:
        """Forget shares whose shards are all held. What cannot be deleted is left to a later sweep."""
        try:
            for record in await self.maker.lanes.run("disk", self.maker.records.drop_taken, is_held):
                for hashed in record.made:
                    self.made.pop(hashed.id, None)
        except FileError as error:
            _log.warning("share not forgotten", error=str(error))

    def _make_room(self, asker: PeerId, wanted: HubShare, room: int) -> None:
        """See to it that a share fits beside the others; of the asker's own, those that others need not may give way.

        Another division of the same files always does: it is not going to be kept. Blocking.
        """
        records = self.maker.records
        others = [record for record in records.all() if record.share != wanted]
        lacking = wanted.nbytes + sum(record.share.nbytes for record in others) - room
        replaced = [record for record in others if record.askers == (asker,)]
        replaced.sort(key=lambda record: record.share.files != wanted.files)
        going = []
        for record in replaced:
            if record.share.files == wanted.files or lacking > 0:
                going.append(record)
                lacking -= record.share.nbytes
        if lacking > 0:
            raise Unavailable(
                f"this node gives room for {max(wanted.nbytes - lacking, 0) / 1e6:.0f} MB more, and the share has "
                f"{wanted.nbytes / 1e6:.0f}"
            )
        records.claim(wanted, asker)
        for record in going:
            self._drop(record)
        self.made = {shard: path for shard, path in self.made.items() if path.exists()}

    def _drop(self, record: ShareRecord) -> None:
        """Delete a share; what others need of it stays. Blocking."""
        records = self.maker.records
        records.drop(record.share, [other for other in records.all() if other.share != record.share])


@attrs.frozen(eq=False)
class CatalogShelf:
    """Reads the catalog."""

    catalog: ModelCatalog
    helping: Helping | None = None  # None: this node helps nobody

    def path(self, shard: ShardId) -> Path:
        """Return where a verified shard lies, or one that was made for a peer. Raises Unavailable for one that is not here."""
        if self.helping is not None and shard in self.helping.made and not self.catalog.is_held(shard):
            return self.helping.made[shard]
        if not self.catalog.is_held(shard):
            raise Unavailable(f"shard {short(shard)} is not here, or not verified yet")
        return self.catalog.path(shard)

    def manifest(self, model: ModelId) -> bytes:
        """Return a manifest as it travels. Raises Unavailable for one that is not here."""
        entry = self.catalog.entry(model)
        if entry is None:
            raise Unavailable(f"model {short(model)} is not here")
        return encode_manifest(entry.manifest)

    async def make_share(self, peer: PeerId, share: bytes, report: Callable[[int, int], None]) -> bytes:
        """Make a share of a model that a peer divides. Raises RequestError, Unavailable, Overloaded."""
        if self.helping is None:
            raise Unavailable("this node makes no shares")
        return await self.helping.make(peer, share, report)

    async def keep_share(
        self,
        peer: PeerId,
        model: ModelId,
        blocks: BlockRange,
        block_count: int,
        _report: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Keep what was made for the peer, as blocks of a model. Raises as `make_share`."""
        if self.helping is None:
            raise Unavailable("this node keeps no shares")
        try:
            if not self._holds(model, blocks):  # else it was made for somebody else too, who was faster
                await self.helping.keep(peer, model, blocks, block_count)
            await self.helping.forget_kept(self.catalog.is_held)
        except FileError as error:
            raise Unavailable(str(error)) from error

    def _holds(self, model: ModelId, blocks: BlockRange) -> bool:
        entry = self.catalog.entry(model)
        parts = () if entry is None else [each for each in entry.manifest.shards if each.block is not None]
        held = {each.block for each in parts if self.catalog.is_held(each.id)}
        return all(block in held for block in blocks)
