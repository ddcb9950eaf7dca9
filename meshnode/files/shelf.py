"""What this node gives to peers: verified shards, the manifests of the models they belong to, and help with models from hubs."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import attrs
import structlog

from meshnode.errors import FileError, Overloaded, Unavailable
from meshnode.files.catalog import ModelCatalog
from meshnode.files.foreign_manifests import encode_manifest
from meshnode.files.hub_shares import HubShare, decode_share, encode_made
from meshnode.files.share_making import ShareMaker
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, ShardId, short

__all__ = ["CatalogShelf", "Helping", "Keeper"]

_log = structlog.get_logger(__name__)


class Keeper(Protocol):
    """Looks after what this node holds of its own accord."""

    def room(self) -> int:
        """Return how many bytes more this node gives room for."""
        ...

    async def keep(self, model: ModelId, blocks: BlockRange, block_count: int) -> None:
        """Have blocks of a model held. Raises MeshnodeError leafs."""
        ...


@attrs.define(eq=False)
class Helping:
    """Makes shares of models for others, one at a time."""

    maker: ShareMaker  # without a token: what it opens is the owner's business, and no peer's
    keeper: Keeper
    made: dict[ShardId, Path] = attrs.field(factory=dict, init=False)  # the last share, for whoever wants to see it
    _is_busy: bool = attrs.field(default=False, init=False)

    async def make(self, share: bytes, report: Callable[[int, int], None]) -> bytes:
        """Make a share and return what it hashes to. Raises RequestError, Unavailable, Overloaded."""
        wanted, room = decode_share(share), self.keeper.room()
        if wanted.nbytes > room:
            raise Unavailable(
                f"this node gives room for {max(room, 0) / 1e6:.0f} MB more, and the share has {wanted.nbytes / 1e6:.0f}"
            )
        if self._is_busy:
            raise Overloaded("this node is making a share already")
        self._is_busy = True
        try:
            self.made = {}
            await self.maker.lanes.run("disk", self._drop_all_but, wanted)
            made = await self.maker.make(wanted, report)
        except FileError as error:
            raise Unavailable(str(error)) from error
        finally:
            self._is_busy = False
        self.made = {hashed.id: self.maker.records.part(hashed) for hashed in made}
        return encode_made(made)

    async def forget_kept(self, is_held: Callable[[ShardId], bool]) -> None:
        """Forget shares whose shards are all held. What cannot be deleted is left to a later sweep."""
        records = self.maker.records
        try:
            for share, made in await self.maker.lanes.run("disk", list, records.all()):
                if made and all(is_held(hashed.id) for hashed in made):
                    await self.maker.lanes.run("disk", records.drop, share)
        except FileError as error:
            _log.warning("share not forgotten", error=str(error))

    def _drop_all_but(self, wanted: HubShare) -> None:
        """Only one share lies here until it is kept, whoever asked for it, and before a restart too."""
        for share, _ in self.maker.records.all():
            if share != wanted:
                self.maker.records.drop(share, spared=wanted.files)


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

    async def make_share(self, _peer: PeerId, share: bytes, report: Callable[[int, int], None]) -> bytes:
        """Make a share of a model that a peer divides. Raises RequestError, Unavailable, Overloaded."""
        if self.helping is None:
            raise Unavailable("this node makes no shares")
        return await self.helping.make(share, report)

    async def keep_share(
        self,
        _peer: PeerId,
        model: ModelId,
        blocks: BlockRange,
        block_count: int,
        _report: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Keep what was made as blocks of a model. Raises as `make_share`."""
        if self.helping is None:
            raise Unavailable("this node keeps no shares")
        try:
            await self.helping.keeper.keep(model, blocks, block_count)
            await self.helping.forget_kept(self.catalog.is_held)
        except FileError as error:
            raise Unavailable(str(error)) from error
