"""Makes a share of a model on a hub: fetches the ranges its shards are made of, and nothing else.

What comes is mirrored, and what is made lies among the transfers, with a record of it: a restart at any moment costs no byte.
"""

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path

import attrs
import httpx
import trio

from meshnode.config.paths import DataPaths
from meshnode.errors import FileError
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_client import Hub, HubRepository, HubTrouble, patiently
from meshnode.files.hub_download import HubDownload
from meshnode.files.hub_mirror import Mirror, open_mirror
from meshnode.files.hub_shares import HubShare, SharedShard
from meshnode.files.importing import require_space
from meshnode.files.shard_file import HashedBytes, SafetensorsLayout, shard_file_name, write_shard
from meshnode.files.share_records import ShareRecords
from meshnode.files.source_file import FileRegion, SourceFile, open_source_file
from meshnode.files.sources import ReportBytes
from meshnode.files.staging import discard, make_staging
from meshnode.flow.lanes import Lanes

__all__ = ["ShareMaker"]


@attrs.frozen(eq=False)
class ShareMaker:
    """Makes shares: what is made lies among the transfers, found there by its hash when its model is known."""

    hub: Hub
    lanes: Lanes
    paths: DataPaths
    pause: float = 1.0  # seconds after a first failure
    lent: bool = False  # for others

    @property
    def records(self) -> ShareRecords:
        """What is known of the shares that lie here."""
        return ShareRecords(self.paths.transfers, lent=self.lent)

    async def make(self, share: HubShare, report: ReportBytes) -> tuple[HashedBytes, ...]:
        """Fetch what the shards are made of, make them, and return what they hash to, in order.

        Raises SourceUnavailable, and FileError when the disk is full. What has come is kept then, and on cancellation, for the
        next attempt, and so is a share that was made and that nobody has taken yet; `records.drop` deletes it.
        """
        if known := await self.lanes.run("hashing", self.records.made, share):
            report(share.nbytes, share.nbytes)
            return known
        await self.lanes.run("disk", self.records.put, share)
        async with AsyncExitStack() as stack:
            mirrors = {number: await self._open(share, share.files[number], stack) for number in _used(share)}
            blocks: dict[int, set[int]] = {number: set() for number in mirrors}
            for tensor in (tensor for shard in share.shards for tensor in shard.tensors):
                blocks[tensor.file].update(mirrors[tensor.file].blocks_of(tensor.offset, tensor.offset + tensor.nbytes))
            plan = [(share.files[number], mirrors[number], blocks[number]) for number in mirrors]
            total = sum(mirror.size_of(block) for _, mirror, wanted in plan for block in wanted)

            def told() -> None:
                report(sum(mirror.held_bytes(wanted) for _, mirror, wanted in plan), total)

            await self.lanes.run("disk", require_space, self.paths.transfers, share.nbytes + total)
            connections = await stack.enter_async_context(self.hub.connect())
            await HubDownload(self.hub, connections, _repository(share), self.lanes, self.pause, told).fetch(plan)
            made = await self._write(share, mirrors)
            await self.lanes.run("disk", self.records.put, share, made)
            for mirror in mirrors.values():
                mirror.forget()
        return made

    async def read(
        self, connections: httpx.AsyncClient, share: HubShare, shard: SharedShard, start: int, end: int
    ) -> bytes:
        """Return bytes `start` to `end` (exclusive) of a shard, from the hub, making no more of it. Raises SourceUnavailable."""
        data = bytearray()
        for part in shard.pieces(start, end):
            if isinstance(part, bytes):
                data += part
            else:
                tensor, first, last = part
                data += await self.fetch(connections, share, tensor.file, first, last)
        return bytes(data)

    async def fetch(self, connections: httpx.AsyncClient, share: HubShare, file: int, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` (exclusive) of one of a share's files. Raises SourceUnavailable."""
        ask = partial(self._range, connections, share, share.files[file], start, end)
        return await patiently(ask, f"a part of {share.files[file].path} of {share.repository}", self.pause)

    async def _range(
        self, connections: httpx.AsyncClient, share: HubShare, file: HubFile, start: int, end: int
    ) -> bytes:
        data = bytearray()
        async with self.hub.open_range(connections, _repository(share), file, start, end) as pieces:
            async for piece in pieces:
                data += piece
        if len(data) != end - start:
            raise HubTrouble(f"{len(data)} bytes came of {end - start}")
        return bytes(data)

    async def _open(self, share: HubShare, file: HubFile, stack: AsyncExitStack) -> Mirror:
        key = self.records.mirror_key(share, file)
        mirror = await self.lanes.run("hashing", open_mirror, self.paths.transfers, key, file.nbytes)
        stack.callback(mirror.close)
        return mirror

    async def _write(self, share: HubShare, mirrors: Mapping[int, Mirror]) -> tuple[HashedBytes, ...]:
        staging = await self.lanes.run("disk", make_staging, self.paths.partial)
        try:
            return await self.lanes.run("hashing", _write_all, share, mirrors, staging, self.paths.transfers)
        finally:
            with trio.CancelScope(shield=True):
                await self.lanes.run("disk", discard, staging)


def _used(share: HubShare) -> list[int]:
    return sorted({tensor.file for shard in share.shards for tensor in shard.tensors})


def _repository(share: HubShare) -> HubRepository:
    return HubRepository(share.repository, share.commit, share.files)


def _write_all(share: HubShare, mirrors: Mapping[int, Mirror], staging: Path, folder: Path) -> tuple[HashedBytes, ...]:
    """Write the shards as parts that are whole, in `folder`. Blocking. Raises FileError."""
    with ExitStack() as stack:
        files = {number: stack.enter_context(open_source_file(mirror.path)) for number, mirror in mirrors.items()}
        made = tuple(write_shard(staging, _pieces(shard, files)) for shard in share.shards)
    try:
        for hashed in made:
            with suppress(FileNotFoundError):  # two shards of the same bytes are one file
                (staging / shard_file_name(hashed.id)).replace(folder / f"{hashed.id}.part")
    except OSError as error:
        raise FileError(f"cannot move a shard to {folder}: {error.strerror}") from error
    return made


def _pieces(shard: SharedShard, files: Mapping[int, SourceFile]) -> Iterator[bytes]:
    yield SafetensorsLayout.of(shard.descriptors).header
    for tensor, _ in shard.placed():
        for piece in FileRegion(files[tensor.file], tensor.offset, tensor.nbytes).pieces():
            trio.from_thread.check_cancelled()
            yield piece
