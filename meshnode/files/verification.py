"""Checks the shards a node keeps against their hashes: what passes is held, what fails is quarantined."""

from functools import partial

import attrs
import structlog
import trio

from meshnode.errors import FileError, ShardCorrupt
from meshnode.files.catalog import CatalogEntry, ModelCatalog
from meshnode.files.progress import ProgressBoard
from meshnode.files.shard_file import quarantine_shard, verify_shard
from meshnode.flow.lanes import Lanes
from meshnode.types.ids import short
from meshnode.types.manifest import ShardDescriptor

__all__ = ["verify_model"]

_log = structlog.get_logger()


async def verify_model(entry: CatalogEntry, catalog: ModelCatalog, lanes: Lanes, board: ProgressBoard) -> bool:
    """Check every shard this node keeps of a model that is not held yet, and say whether all are held now.

    Cancellation ends the reading after at most 4 MiB; what has been checked by then counts only at the next check.
    """
    held = catalog.held(entry.manifest.id)
    missing = {shard.id: shard for shard in entry.manifest.shards if shard.id in entry.wanted and shard.id not in held}
    tally = _Tally(sum(shard.nbytes for shard in missing.values()), entry.label, board)
    async with trio.open_nursery() as nursery:
        for shard in missing.values():
            nursery.start_soon(_verify, shard, catalog, lanes, tally)
    catalog.mark_held(tally.good)
    return len(tally.good) == len(missing)


@attrs.define(eq=False)
class _Tally:
    total: int
    label: str
    board: ProgressBoard
    done: int = 0
    good: list[ShardDescriptor] = attrs.field(factory=list)

    def add(self, nbytes: int) -> None:
        """Count bytes; called from the reading thread, which it ends when the task is cancelled."""
        trio.from_thread.check_cancelled()
        trio.from_thread.run_sync(self._add, nbytes)

    def _add(self, nbytes: int) -> None:
        self.done += nbytes
        self.board.report(self.label, "verifying", self.done, self.total)


async def _verify(shard: ShardDescriptor, catalog: ModelCatalog, lanes: Lanes, tally: _Tally) -> None:
    paths = catalog.paths
    try:
        await lanes.run("hashing", verify_shard, paths.shards, shard, tally.add)
    except ShardCorrupt as error:
        _log.error("shard.corrupt", shard=short(shard.id), error=str(error))
        with trio.CancelScope(shield=True):
            await _quarantine(shard, catalog, lanes)
    except FileError as error:
        _log.warning("shard.missing", shard=short(shard.id), error=str(error))
    else:
        tally.good.append(shard)


async def _quarantine(shard: ShardDescriptor, catalog: ModelCatalog, lanes: Lanes) -> None:
    move = partial(quarantine_shard, catalog.paths.shards, catalog.paths.quarantine, shard.id)
    try:
        await lanes.run("disk", move)
    except FileError as error:  # it stays where it is, but nobody will load it: it is not held
        _log.error("shard.not_quarantined", shard=short(shard.id), error=str(error))
    catalog.count_quarantined()
