"""Fetches shards from several peers at once: rarest first, every chunk verified, a liar named and left out.

Few are asked at once: who can give the rarest of what lacks, and between two runs one steps back for somebody who can give
something rarer; beside those who are slow others are asked too. Who has what is looked up again while it runs, as members come
and get shards meanwhile.
Who has nothing left to do races those who are slow for what they are asked for; the chunk that is whole first is kept.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import inf
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

_PEERS = 4  # asked at once, besides those who are slow
_MOST_PEERS = 8  # with those
_TRIES = 3  # failures of one peer in a row that bring nothing, after which it is left out of this transfer
_PAUSE = 0.5  # seconds after a failure, times their number
_SLOW = 3.0  # seconds after which a run is one that others may race for, and beside which others are asked
_FRESH = 5.0  # seconds for which it is believed who holds what

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
    _plan: ChunkPlan = attrs.field(factory=lambda: ChunkPlan({}, {}), init=False)
    _candidates: frozenset[PeerId] = attrs.field(default=frozenset(), init=False)  # who holds something of it
    _looked: float = attrs.field(default=-inf, init=False)  # when that was so
    _busy: set[PeerId] = attrs.field(factory=set, init=False)  # who has one of the places
    _asked: dict[PeerId, _Asked] = attrs.field(factory=dict, init=False)  # who was asked longest ago comes first
    _overtaken: set[PeerId] = attrs.field(factory=set, init=False)  # who was slow, and so races with nobody
    _failures: dict[PeerId, int] = attrs.field(factory=dict, init=False)
    _why: dict[PeerId, str] = attrs.field(factory=dict, init=False)
    _news: trio.Event = attrs.field(
        factory=trio.Event, init=False
    )  # set when a run or the asking of somebody has ended

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
        self._plan = ChunkPlan.of({}, {shard: self._parts[shard.id].held for shard in self.shards})
        self._look()
        self._tell()
        try:
            async with trio.open_nursery() as nursery:

                def whole(part: PartFile) -> None:
                    nursery.start_soon(self._sync, part)

                for _ in range(_MOST_PEERS):
                    nursery.start_soon(self._fill_place, whole)
        except* FileError as group:
            raise group.exceptions[0] from None

    async def _sync(self, part: PartFile) -> None:
        """Bring a whole shard to the disk while others are still coming."""
        await self.lanes.run("disk", part.sync)

    async def _fill_place(self, whole: Callable[[PartFile], None]) -> None:
        """Ask one peer after the other until nothing lacks or nobody can help. Raises FileError when the disk is full."""
        while any(map(self._lacks, self._parts)):
            peer = self._choose()
            if peer is None and not self._busy:  # before giving up, whoever has come just now counts too
                self._look()
                peer = self._choose()
                if peer is None:
                    return
            if peer is None:
                await self._wait(_SLOW)
                continue
            self._busy.add(peer)
            try:
                await self._fetch_from(peer, whole)
            finally:
                self._busy.remove(peer)
                self._wake()

    def _choose(self) -> PeerId | None:
        """Return who is not asked yet and can give the rarest, None for nobody, or where enough are asked."""
        if len(self._busy) - len(self._slow()) >= _PEERS:
            return None
        self._look_again()
        able = [peer for peer in self._waiting() if self._can_help(peer)]
        return min(able, key=lambda peer: (self._plan.rarity(peer), peer in self._overtaken, peer), default=None)

    def _waiting(self) -> frozenset[PeerId]:
        return self._candidates - self._busy

    def _look_again(self) -> None:
        if trio.current_time() - self._looked >= _FRESH:
            self._look()

    def _look(self) -> None:
        """Look up who holds what lacks, and may still be asked."""
        self._looked = trio.current_time()
        left_out = {peer for peer, count in self._failures.items() if count >= _TRIES}
        for shard in filter(lambda each: self._lacks(each.id), self.shards):
            self._plan.holders[shard.id] = holders_of(self.peers, self.manifest.id, shard) - left_out
        self._candidates = frozenset[PeerId]().union(*self._plan.holders.values())

    async def _fetch_from(self, peer: PeerId, whole: Callable[[PartFile], None]) -> None:
        """Fetch from one peer until it can help no more, has failed too often, or somebody can give something rarer."""
        while self._may_go_on(peer):
            try:
                async with self.peers.line(peer) as line:
                    await self._drain(peer, line, whole)
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
        if self._failures.get(peer, 0) >= _TRIES:
            self._look()  # what it held is rarer now

    async def _drain(self, peer: PeerId, line: ChunkLine, whole: Callable[[PartFile], None]) -> None:
        while self._may_go_on(peer):
            run = self._plan.next(peer) or self._race(peer)
            if run is None:  # others are asked for the rest, and may fail or be slow
                await self._wait(_SLOW)
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
                    self._plan.give_back(run, part.held, [each.run for each in self._asked.values()])
                    self._wake()
                    self._tell()
                    self._stop_overtaken()
            if scope.cancelled_caught:  # overtaken, and the line is of no use any more
                return
            if not self._lacks(run.shard):
                whole(part)

    async def _wait(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _race(self, peer: PeerId) -> Run | None:
        if peer in self._overtaken:
            return None
        slow = self._slow()
        brisk = [asked.run for asked in self._asked.values() if asked not in slow]
        return self._plan.race(peer, [asked.run for asked in slow], brisk, lambda shard: self._parts[shard].held)

    def _slow(self) -> list[_Asked]:
        long_ago = trio.current_time() - _SLOW
        return [asked for asked in self._asked.values() if asked.since <= long_ago]

    def _stop_overtaken(self) -> None:
        """Hang up on those who are asked for nothing that still lacks."""
        for peer, asked in self._asked.items():
            if self._parts[asked.run.shard].held.issuperset(asked.run.chunks):
                asked.scope.cancel()
                if trio.current_time() - asked.since >= _SLOW:
                    self._overtaken.add(peer)

    def _may_go_on(self, peer: PeerId) -> bool:
        self._look_again()
        return self._can_help(peer) and not self._plan.is_outranked(peer, self._waiting())

    def _can_help(self, peer: PeerId) -> bool:
        may_be_asked = self._failures.get(peer, 0) < _TRIES
        return may_be_asked and any(self._lacks(shard) and peer in self._plan.holders[shard] for shard in self._parts)

    def _lacks(self, shard: ShardId) -> bool:
        part = self._parts[shard]
        return len(part.held) < len(part.shard.chunks)

    def _explain(self, lacking: Sequence[ShardDescriptor]) -> str:
        nowhere = [shard for shard in lacking if not holders_of(self.peers, self.manifest.id, shard)]
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
