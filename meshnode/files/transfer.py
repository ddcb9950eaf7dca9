"""Fetches shards from several peers at once: rarest first, every chunk verified, a liar named and left out.

Who has nothing left to do races those who are slow for what they are asked for; the chunk that is whole first is kept.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import structlog
import trio

from meshnode.errors import FileError, MeshnodeError, PeerMisbehaved, ShardCorrupt, SourceUnavailable
from meshnode.files.chunk_plan import ChunkPlan, Run
from meshnode.files.importing import require_space
from meshnode.files.part_file import PartFile, open_part
from meshnode.files.peer_ports import ChunkLine, PeerShards, holders_of
from meshnode.files.sources import ReportBytes
from meshnode.flow.lanes import Lanes
from meshnode.types.ids import PeerId, ShardId, short
from meshnode.types.manifest import ModelManifest, ShardDescriptor

__all__ = ["ShardTransfer"]

_PEERS = 4  # asked at once
_TRIES = 3  # failures of one peer in a row that bring nothing, after which it is left out of this transfer
_PAUSE = 0.5  # seconds after a failure, times their number
_SLOW = 3.0  # seconds after which a run is one that others may race for

_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class _Asked:
    """What one peer is asked for now."""

    run: Run
    since: float
    scope: trio.CancelScope  # ends it


@attrs.define(eq=False)
class ShardTransfer:
    """One transfer of shards of one model into `staging`; `run` it once."""

    manifest: ModelManifest
    shards: Sequence[ShardDescriptor]
    peers: PeerShards
    folder: Path  # of the parts
    lanes: Lanes
    report: ReportBytes
    _parts: dict[ShardId, PartFile] = attrs.field(factory=dict, init=False)
    _holders: Mapping[ShardId, frozenset[PeerId]] = attrs.field(factory=dict, init=False)
    _asked: dict[PeerId, _Asked] = attrs.field(factory=dict, init=False)  # who was asked longest ago comes first
    _overtaken: set[PeerId] = attrs.field(factory=set, init=False)  # who was slow, and so races with nobody
    _failures: dict[PeerId, int] = attrs.field(factory=dict, init=False)
    _why: dict[PeerId, str] = attrs.field(factory=dict, init=False)
    _news: trio.Event = attrs.field(factory=trio.Event, init=False)  # set when a run has ended

    async def run(self, staging: Path) -> None:
        """Fetch what is missing and leave the whole shards in `staging`.

        Raises SourceUnavailable when nobody gives what is missing, FileError when it cannot be written. What has come is kept
        for the next attempt then, and on cancellation too, which closes every connection.
        """
        async with self.gathered() as parts:
            if lacking := [shard for shard in self.shards if self._lacks(shard.id)]:
                raise SourceUnavailable(self._explain(lacking))
            for part in parts:
                await self.lanes.run("disk", part.finish, staging)

    @asynccontextmanager
    async def gathered(self) -> AsyncIterator[tuple[PartFile, ...]]:
        """Fetch as much as peers give, and give the parts that are whole then; those that nobody finishes are kept.

        Raises FileError when there is no room for what is missing, before anybody is asked, and when a part cannot be written.
        Cancellation closes every connection.
        """
        try:
            for shard in self.shards:
                self._parts[shard.id] = await self.lanes.run("hashing", open_part, self.folder, shard)
            if missing := sum(part.shard.nbytes - part.done_bytes for part in self._parts.values()):
                await self.lanes.run("disk", require_space, self.folder, missing)
            await self._fetch_all()
            yield tuple(self._parts[shard] for shard in self._parts if not self._lacks(shard))
        finally:
            for part in self._parts.values():
                part.close()

    async def _fetch_all(self) -> None:
        holders = self._holders = {shard.id: holders_of(self.peers, self.manifest.id, shard) for shard in self.shards}
        plan = ChunkPlan.of(holders, {shard: self._parts[shard.id].held for shard in self.shards})
        self._tell()
        candidates = sorted(frozenset[PeerId]().union(*holders.values()))
        limiter = trio.CapacityLimiter(_PEERS)
        try:
            async with trio.open_nursery() as nursery:

                def whole(part: PartFile) -> None:
                    nursery.start_soon(self._sync, part)

                for peer in candidates:
                    nursery.start_soon(self._fetch_from, peer, plan, limiter, whole)
        except* FileError as group:
            raise group.exceptions[0] from None

    async def _sync(self, part: PartFile) -> None:
        """Bring a whole shard to the disk while others are still coming."""
        await self.lanes.run("disk", part.sync)

    async def _fetch_from(
        self, peer: PeerId, plan: ChunkPlan, limiter: trio.CapacityLimiter, whole: Callable[[PartFile], None]
    ) -> None:
        """Fetch from one peer until it can help no more, or has failed too often. Raises FileError when the disk is full."""
        async with limiter:
            while self._can_help(peer, plan):
                try:
                    async with self.peers.line(peer) as line:
                        await self._drain(peer, line, plan, whole)
                except ShardCorrupt as error:
                    self._failures[peer] = _TRIES
                    self._why[peer] = "it sent other bytes than the manifest says"
                    self.peers.accuse(peer, str(error))
                except FileError:
                    raise
                except MeshnodeError as error:
                    if isinstance(error, PeerMisbehaved):
                        self.peers.accuse(peer, str(error))
                    self._failures[peer] = self._failures.get(peer, 0) + 1
                    self._why[peer] = str(error)
                    _log.info("shards not fetched", peer=short(peer), why=str(error))
                    await trio.sleep(_PAUSE * self._failures[peer])
        self._news.set()

    async def _drain(self, peer: PeerId, line: ChunkLine, plan: ChunkPlan, whole: Callable[[PartFile], None]) -> None:
        while self._can_help(peer, plan):
            run = plan.next(peer) or self._race(peer, plan)
            if run is None:  # others are asked for the rest, and may fail or be slow
                with trio.move_on_after(_SLOW):
                    await self._news.wait()
                continue
            part = self._parts[run.shard]
            lacking = set(run.chunks) - part.held
            with trio.CancelScope() as scope:
                self._asked[peer] = _Asked(run, trio.current_time(), scope)
                try:
                    await line.fetch(run.shard, run.first, run.count, part.write)
                finally:
                    del self._asked[peer]
                    if not lacking.isdisjoint(part.held):  # a line that breaks now and then gets there too
                        self._failures.pop(peer, None)
                    plan.give_back(run, part.held, [each.run for each in self._asked.values()])
                    self._news.set()
                    self._news = trio.Event()
                    self._tell()
                    self._stop_overtaken()
            if scope.cancelled_caught:  # overtaken, and the line is of no use any more
                return
            if not self._lacks(run.shard):
                whole(part)

    def _race(self, peer: PeerId, plan: ChunkPlan) -> Run | None:
        if peer in self._overtaken:
            return None
        long_ago = trio.current_time() - _SLOW
        slow = [asked.run for asked in self._asked.values() if asked.since <= long_ago]
        brisk = [asked.run for asked in self._asked.values() if asked.since > long_ago]
        return plan.race(peer, slow, brisk, lambda shard: self._parts[shard].held)

    def _stop_overtaken(self) -> None:
        """Hang up on those who are asked for nothing that still lacks."""
        for peer, asked in self._asked.items():
            if self._parts[asked.run.shard].held.issuperset(asked.run.chunks):
                asked.scope.cancel()
                if trio.current_time() - asked.since >= _SLOW:
                    self._overtaken.add(peer)

    def _can_help(self, peer: PeerId, plan: ChunkPlan) -> bool:
        may_be_asked = self._failures.get(peer, 0) < _TRIES
        return may_be_asked and any(peer in plan.holders[shard] and self._lacks(shard) for shard in self._parts)

    def _lacks(self, shard: ShardId) -> bool:
        part = self._parts[shard]
        return len(part.held) < len(part.shard.chunks)

    def _explain(self, lacking: Sequence[ShardDescriptor]) -> str:
        nowhere = [shard for shard in lacking if not self._holders[shard.id]]
        text = f"{len(lacking)} of {len(self.shards)} shards of {self.manifest.name} could not be had from peers"
        if nowhere:
            text += f"; nobody has {', '.join(map(_place, nowhere[:5]))}"
        reasons = "; ".join(f"{short(peer)}: {why}" for peer, why in list(self._why.items())[:3])
        return f"{text}{'; ' + reasons if reasons else ''}. What has come is kept"

    def _tell(self) -> None:
        done = sum(part.done_bytes for part in self._parts.values())
        self.report(done, sum(shard.nbytes for shard in self.shards))


def _place(shard: ShardDescriptor) -> str:
    return shard.kind.value if shard.block is None else f"block {shard.block}"
