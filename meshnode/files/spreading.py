"""A model from a hub, fetched by several nodes: each makes a share of its shards, and nobody fetches what another does.

Ids come from bytes, and of its share only a helper has seen them. So when a helper can no longer change what it said, this node
has chunks of its choice from it and fetches a little of each from the hub; one that lied is named, and its share is made here.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import msgspec
import structlog
import trio

from meshnode.errors import (
    MeshnodeError,
    PeerMisbehaved,
    PeerUnreachable,
    RequestError,
    ShardCorrupt,
    SourceUnavailable,
)
from meshnode.files.division import divide
from meshnode.files.hub_copies import HubCopies, NotTheSame
from meshnode.files.hub_mirror import forget_mirror
from meshnode.files.hub_outline import Outline
from meshnode.files.hub_proof import fetch_sample, prove
from meshnode.files.hub_shares import HubShare, SharedShard, decode_made
from meshnode.files.importing import free_bytes
from meshnode.files.jobs import ModelJobs, Part
from meshnode.files.peer_ports import PeerShards, holders_of
from meshnode.files.samples import Sample
from meshnode.files.shard_file import HashedBytes, hash_pieces, write_shard
from meshnode.files.share_making import ShareMaker
from meshnode.files.sources import Origin
from meshnode.files.transfer import ShardTransfer
from meshnode.flow.lanes import Lanes
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import PeerId, short
from meshnode.types.manifest import ModelManifest, ShardDescriptor, ShardKind
from meshnode.types.segments import segments_of

__all__ = ["Spreading"]

_STALL = 120.0  # seconds in which a helper gets nowhere
_OWN = "this node"
_log = structlog.get_logger(__name__)

_Made = dict[SharedShard, HashedBytes]


@attrs.define
class _Progress:
    """Bytes fetched by each, of how many."""

    label: str
    jobs: ModelJobs
    rows: dict[str, tuple[int, int]] = attrs.field(factory=dict)

    def report(self, who: str, done: int, total: int) -> None:
        self.rows[who] = (done, total)
        self.jobs.board.report(
            self.label,
            "downloading",
            sum(row[0] for row in self.rows.values()),
            sum(row[1] for row in self.rows.values()),
        )


@attrs.frozen(eq=False)
class _Work:
    """What is to be made of a model, and by whom."""

    outline: Outline
    shares: dict[PeerId, BlockRange]
    said: Mapping[SharedShard, HashedBytes]  # of a model that is known, what its manifest says
    there: frozenset[SharedShard]  # held by somebody
    is_known: bool  # here, and not only to members, who may lie

    def own_share(self, blocks: BlockRange) -> HubShare | None:
        """Return what this node makes, or None."""
        return self.outline.share(ShardKind.EMBEDDING, ShardKind.HEAD, blocks=blocks, besides=self.there)

    def share(self, blocks: BlockRange) -> HubShare | None:
        """Return what is to be made of blocks, or None."""
        return self.outline.share(blocks=blocks, besides=self.there)

    def checked(self, share: HubShare, made: Sequence[HashedBytes], who: str) -> _Made:
        """Return what a share was made into.

        Raises PeerMisbehaved where that is not what the model's manifest says, NotTheSame where only members vouch for it.
        """
        for shard, hashed in zip(share.shards, made, strict=True):
            if self.said.get(shard, hashed) != hashed:
                wrong = PeerMisbehaved if self.is_known else NotTheSame
                raise wrong(f"{who} has other bytes of {shard.place} than the model's manifest says")
        return dict(zip(share.shards, made, strict=True))


@attrs.frozen(eq=False)
class Spreading:
    """Divides models among the nodes that give room."""

    copies: HubCopies

    @property
    def jobs(self) -> ModelJobs:
        """The work on models here."""
        return self.copies.jobs

    @property
    def peers(self) -> PeerShards:
        """Who holds what, and who gives room."""
        return self.copies.copies.peers

    @property
    def maker(self) -> ShareMaker:
        """Makes this node's own share."""
        return self.copies.maker

    @property
    def lanes(self) -> Lanes:
        """Threads for blocking work."""
        return self.jobs.lanes

    async def acquire(self, reference: str) -> ModelManifest:
        """Have a model in the mesh, here its ends and its first blocks; other blocks lie with those who fetched them.

        What somebody holds already is not fetched again. Raises RequestError when nobody gives room, FileError leafs. What has
        been fetched by anybody is kept then, and on cancellation, which ends the work of all helpers.
        """
        origin = await self.copies.source.look(reference)
        async with self.jobs.turns.of(origin.version):
            known = self.jobs.known(origin)
            if known is not None and all(self._is_there(known.manifest, shard) for shard in known.manifest.shards):
                return known.manifest  # where its parts should lie is what placement looks after
            if not self.peers.helpers():
                raise RequestError(
                    "no other node gives room for a part of the model: set resources.disk_bytes on those that should, or "
                    "leave out --spread"
                )
            if known is not None:
                manifest, shares = await self._acquire(origin, known.manifest)
            else:
                manifest, shares = await self._acquire_unknown(origin)
        await self._entrust(reference, manifest, shares)
        return manifest

    async def _acquire_unknown(self, origin: Origin) -> tuple[ModelManifest, Mapping[PeerId, BlockRange]]:
        """Go by what members say the model is, as far as the hub bears it out; fetch all of it where they are of no use."""
        for manifest, outline in await self.copies.candidates(origin):
            try:
                await self.copies.compare(manifest, outline)
                return await self._acquire(origin, manifest, is_known=False)
            except NotTheSame as error:
                _log.warning("not the hub's model", reference=origin.reference, id=short(manifest.id), why=str(error))
        return await self._acquire(origin, None, is_known=False)

    async def _acquire(
        self, origin: Origin, known: ModelManifest | None, *, is_known: bool = True
    ) -> tuple[ModelManifest, Mapping[PeerId, BlockRange]]:
        """Have everything made that nobody holds, and this node's part here; return who has made which of the others.

        `is_known` is false where only members vouch for a manifest: raises NotTheSame where what is made is something else.
        """
        async with self.jobs.staging() as scratch:
            outline = await self.copies.source.outline(origin.exact, scratch)
        own, shares = await self.lanes.run("disk", self._divide, outline, self.peers.helpers())
        said = {} if known is None else outline.described(known)
        work = _Work(outline, shares, said, self._there(outline, known), is_known)
        progress = _Progress(origin.reference, self.jobs)
        made, missing = await self._make_all(work, own, progress)
        for peer in [peer for peer in shares if await self._lied(peer, work, made)]:
            missing.append(shares.pop(peer))
        for blocks in missing:
            made.update(await self._make_here(work, work.share(blocks), progress))
        await self.lanes.run("disk", self._forget_headers, outline)
        tokenizer = await self.lanes.run("hashing", hash_pieces, [outline.tokenizer])
        manifest = known or attrs.evolve(outline.manifest(tokenizer, made), source_version=origin.version)
        for blocks in (own, *missing):
            fetch = partial(self._finish, manifest, origin.reference, outline.tokenizer)
            manifest = await self.jobs.adopt(
                manifest,
                origin,
                Part(blocks, both_ends=True),
                fetch,
                aliases=outline.aliases,
                sampled=not is_known and bool(shares or work.there),
            )
        with trio.CancelScope(shield=True):  # nobody would come back for it
            await self.lanes.run("disk", self._forget, outline)
        return manifest, shares

    def _is_there(self, manifest: ModelManifest, shard: ShardDescriptor) -> bool:
        """Whether a shard is held here or by somebody who can be reached."""
        if shard.kind is ShardKind.TOKENIZER or shard.id in self.jobs.catalog.held(manifest.id):
            return True
        return bool(holders_of(self.peers, manifest.id, shard))

    def _there(self, outline: Outline, known: ModelManifest | None) -> frozenset[SharedShard]:
        if known is None:
            return frozenset()
        places = {(each.kind, each.block) for each in known.shards if self._is_there(known, each)}
        return frozenset(shard for shard in outline.whole.shards if (shard.kind, shard.block) in places)

    def _forget_headers(self, outline: Outline) -> None:
        """Delete what has come of the files, of which all that is wanted has been made. Raises FileError."""
        for file in outline.whole.files:
            forget_mirror(self.jobs.catalog.paths.transfers, file.oid)

    def _forget(self, outline: Outline) -> None:
        """Delete what is left of shares that were made here, in this division of the model and in others. Raises FileError."""
        for record in self.maker.records.all():
            if record.share.files == outline.whole.files:
                self.maker.records.drop(record.share)

    def _divide(self, outline: Outline, helpers: Mapping[PeerId, int]) -> tuple[BlockRange, dict[PeerId, BlockRange]]:
        count = outline.config.block_count
        block_bytes = max(shard.nbytes for shard in outline.whole.shards if shard.kind is ShardKind.BLOCK)
        own = free_bytes(self.jobs.catalog.paths.transfers)
        return divide(segments_of(count), block_bytes, own, helpers)

    async def _make_all(self, work: _Work, own: BlockRange, progress: _Progress) -> tuple[_Made, list[BlockRange]]:
        """Have all shares made side by side; return what was made, and the blocks that helpers have failed to make."""
        made: _Made = {}
        missing: list[BlockRange] = []
        shares = work.shares

        async def here() -> None:
            made.update(await self._make_here(work, work.own_share(own), progress))

        async def there(peer: PeerId, blocks: BlockRange, share: HubShare) -> None:
            try:
                made.update(work.checked(share, await self._ask(peer, share, progress), short(peer)))
            except NotTheSame:
                raise
            except MeshnodeError as error:
                _log.warning("share not made", peer=short(peer), blocks=str(blocks), why=str(error))
                if isinstance(error, PeerMisbehaved):
                    self.peers.accuse(peer, str(error))
                missing.append(blocks)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here)
                for peer, blocks in list(shares.items()):
                    share = work.share(blocks)
                    if share is None:  # others hold all of it
                        del shares[peer]
                        continue
                    _log.info("share asked for", peer=short(peer), blocks=str(blocks))
                    nursery.start_soon(there, peer, blocks, share)
        except* MeshnodeError as group:
            raise group.exceptions[0] from None
        for peer in [peer for peer, blocks in shares.items() if blocks in missing]:
            del shares[peer]
        return made, missing

    async def _make_here(self, work: _Work, share: HubShare | None, progress: _Progress) -> _Made:
        if share is None:
            return {}
        made = await self.maker.make(share, partial(progress.report, _OWN))
        try:
            return work.checked(share, made, self.maker.hub.endpoint)
        except PeerMisbehaved as error:
            raise SourceUnavailable(f"{error}; remove the model first") from error

    async def _ask(self, peer: PeerId, share: HubShare, progress: _Progress) -> tuple[HashedBytes, ...]:
        """Have a helper make a share. Raises PeerError leafs, and what it refuses with."""
        furthest = -1
        with trio.CancelScope(deadline=trio.current_time() + _STALL) as scope:

            def report(done: int, total: int) -> None:
                nonlocal furthest
                if done > furthest:
                    furthest, scope.deadline = done, trio.current_time() + _STALL
                progress.report(peer, min(done, share.nbytes), min(total, 2 * share.nbytes))

            async with self.peers.line(peer) as line:
                raw = await line.make_share(msgspec.msgpack.encode(share), report)
        if scope.cancelled_caught:
            raise PeerUnreachable(f"{short(peer)} got no further with its share for {_STALL:.0f} s")
        try:
            return decode_made(raw, share)
        except ValueError as error:
            raise PeerMisbehaved(f"{short(peer)} says of its share what cannot be: {error}") from error

    async def _lied(self, peer: PeerId, work: _Work, made: _Made) -> bool:
        """Compare some of what a helper has made with what the hub has. Raises SourceUnavailable when that cannot be asked."""
        blocks = work.shares[peer]
        share = work.share(blocks)
        assert share is not None
        try:
            async with self.peers.line(peer) as line:
                turn = trio.Lock()  # a line gives one thing at a time

                async def sampled(sample: Sample) -> bytes:
                    async with turn:
                        return await fetch_sample(line, sample)

                await prove(self.maker, share, {shard: made[shard] for shard in share.shards}, sampled)
        except SourceUnavailable:
            raise
        except MeshnodeError as error:
            _log.warning("share not proved", peer=short(peer), blocks=str(blocks), why=str(error))
            if isinstance(error, PeerMisbehaved | ShardCorrupt):
                self.peers.accuse(peer, str(error))
            return True
        return False

    async def _finish(
        self,
        manifest: ModelManifest,
        label: str,
        tokenizer: bytes,
        shards: tuple[ShardDescriptor, ...],
        staging: Path,
    ) -> None:
        """Take what was made from among the transfers, and the tokenizer, which came with the headers, from memory."""
        there = await self.lanes.run("disk", write_shard, staging, [tokenizer])
        lacking = tuple(shard for shard in shards if shard.id != there.id)
        report = partial(self.jobs.board.report, label, "importing")
        await ShardTransfer(manifest, lacking, self.peers, self.jobs.catalog.paths.transfers, self.lanes, report).run(
            staging
        )

    async def _entrust(self, reference: str, manifest: ModelManifest, shares: Mapping[PeerId, BlockRange]) -> None:
        """Tell helpers that their share is to be kept; whatever one does not keep is fetched here."""
        failed: list[BlockRange] = []

        async def keep(peer: PeerId, blocks: BlockRange) -> None:
            try:
                async with self.peers.line(peer) as line:
                    await line.keep_share(manifest.id, blocks, manifest.config.block_count)
            except MeshnodeError as error:
                _log.warning("share not kept", peer=short(peer), blocks=str(blocks), why=str(error))
                failed.append(blocks)

        async with trio.open_nursery() as nursery:
            for peer, blocks in shares.items():
                nursery.start_soon(keep, peer, blocks)
        for blocks in failed:
            await self.jobs.acquire(self.copies.source, reference, Part(blocks))
