"""A share of a model on a hub: some of its shards, made by one of several nodes that fetch the model together.

Whoever divides the model has read its header, and says of every tensor in which file and where its bytes are; whoever makes a
share fetches these ranges and nothing else, and says what the shards hash to.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path

import attrs
import httpx
import msgspec
import trio

from meshnode.config.paths import DataPaths
from meshnode.errors import FileError, RequestError
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_client import Hub, HubRepository, HubTrouble, patiently
from meshnode.files.hub_download import HubDownload
from meshnode.files.hub_mirror import Mirror, open_mirror
from meshnode.files.hub_reference import HUB_PREFIX, HubReference
from meshnode.files.importing import require_space
from meshnode.files.shard_file import HashedBytes, SafetensorsLayout, shard_file_name, write_shard
from meshnode.files.source_file import FileRegion, SourceFile, open_source_file
from meshnode.files.sources import ReportBytes
from meshnode.files.staging import discard, make_staging
from meshnode.flow.lanes import Lanes
from meshnode.types.manifest import CHUNK_BYTES, ShardKind, TensorDescriptor

__all__ = ["HubShare", "ShareMaker", "SharedShard", "SharedTensor", "decode_made", "decode_share", "encode_made"]

_MOST_SHARDS = 4096
_MOST_FILES = 1000
_MOST_DIMENSIONS = 8


@attrs.frozen
class SharedTensor:
    """A tensor, and where its bytes are."""

    name: str
    ggml_type: str
    shape: tuple[int, ...]  # outermost dimension first
    nbytes: int
    file: int  # number of the file
    offset: int  # bytes from its beginning


@attrs.frozen
class SharedShard:
    """One shard, which is to be made."""

    kind: ShardKind
    block: int | None
    tensors: tuple[SharedTensor, ...]

    @property
    def descriptors(self) -> tuple[TensorDescriptor, ...]:
        """The tensors as a manifest has them."""
        return tuple(TensorDescriptor(each.name, each.ggml_type, each.shape, each.nbytes) for each in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the shard's file."""
        return len(SafetensorsLayout.of(self.descriptors).header) + sum(each.nbytes for each in self.tensors)


@attrs.frozen
class HubShare:
    """Shards of a model, and the files of a repository that they are in."""

    repository: str  # OWNER/REPO
    commit: str
    files: tuple[HubFile, ...]
    shards: tuple[SharedShard, ...]

    def __attrs_post_init__(self) -> None:
        try:
            HubReference.parse(f"{HUB_PREFIX}{self.repository}@{self.commit}")
        except RequestError as error:
            raise ValueError(str(error)) from error
        if not 0 < len(self.files) <= _MOST_FILES or not 0 < len(self.shards) <= _MOST_SHARDS:
            raise ValueError(f"{len(self.files)} files and {len(self.shards)} shards")
        for file in self.files:
            if not file.nbytes > 0 or ".." in file.path.split("/") or not file.path.isprintable():
                raise ValueError(f"a file {file.path[:80]!r} of {file.nbytes} bytes")
        for tensor in (tensor for shard in self.shards for tensor in shard.tensors):
            self._check(tensor)

    def _check(self, tensor: SharedTensor) -> None:
        has_file = 0 <= tensor.file < len(self.files)
        if not has_file or not 0 <= tensor.offset < tensor.offset + tensor.nbytes <= self.files[tensor.file].nbytes:
            raise ValueError(f"tensor {tensor.name[:80]!r} lies outside its file")
        if not 0 < len(tensor.shape) <= _MOST_DIMENSIONS or min(tensor.shape) < 1:
            raise ValueError(f"tensor {tensor.name[:80]!r} has the shape {tensor.shape[:_MOST_DIMENSIONS]}")

    @property
    def nbytes(self) -> int:
        """Bytes of the shards."""
        return sum(shard.nbytes for shard in self.shards)


def decode_share(raw: bytes) -> HubShare:
    """Read a share as it travels, msgpack. Raises RequestError."""
    try:
        return msgspec.msgpack.decode(raw, type=HubShare)
    except msgspec.MsgspecError as error:
        raise RequestError(f"a share that cannot be made: {error}") from error


def encode_made(made: Sequence[HashedBytes]) -> bytes:
    """Return what a share's shards hash to, as it travels."""
    return msgspec.msgpack.encode(made)


def decode_made(raw: bytes, share: HubShare) -> tuple[HashedBytes, ...]:
    """Read what somebody says that a share's shards hash to. Raises ValueError for what they cannot hash to."""
    made = msgspec.msgpack.decode(raw, type=tuple[HashedBytes, ...])  # its error is a ValueError
    for shard, hashed in zip(share.shards, made, strict=True):
        size = shard.nbytes
        digests = (hashed.id, *hashed.chunks)
        if hashed.nbytes != size or len(hashed.chunks) != -(-size // CHUNK_BYTES):
            raise ValueError(f"a shard of {size} bytes is said to have {hashed.nbytes} in {len(hashed.chunks)} chunks")
        if any(len(digest) != 64 or set(digest) - set("0123456789abcdef") for digest in digests):
            raise ValueError("what should be hashes is something else")
    return made


@attrs.frozen(eq=False)
class ShareMaker:
    """Makes shares: what is made lies among the transfers, found there by its hash when its model is known."""

    hub: Hub
    lanes: Lanes
    paths: DataPaths
    pause: float = 1.0  # seconds after a first failure
    finished: dict[HubShare, tuple[HashedBytes, ...]] = attrs.field(factory=dict, init=False)  # not yet taken

    async def make(self, share: HubShare, report: ReportBytes) -> tuple[HashedBytes, ...]:
        """Fetch what the shards are made of, make them, and return what they hash to, in order.

        Raises SourceUnavailable, and FileError when the disk is full. What has come is kept then, and on cancellation, for the
        next attempt, and so is a share that was made and that nobody has taken yet.
        """
        if (known := await self.lanes.run("disk", self._untaken, share)) is not None:
            report(share.nbytes, share.nbytes)
            return known
        async with AsyncExitStack() as stack:
            mirrors = {number: await self._open(share.files[number], stack) for number in _used(share)}
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
            for mirror in mirrors.values():
                mirror.forget()
        self.finished[share] = made
        return made

    def drop(self, share: HubShare) -> None:
        """Delete what was made of a share and is still among the transfers. Blocking. Raises FileError."""
        for hashed in self.finished.pop(share, ()):
            try:
                self.part(hashed).unlink(missing_ok=True)
            except OSError as error:
                raise FileError(f"cannot delete {self.part(hashed)}: {error.strerror}") from error

    def part(self, hashed: HashedBytes) -> Path:
        """Return where a shard that was made lies until it is taken."""
        return self.paths.transfers / f"{hashed.id}.part"

    def _untaken(self, share: HubShare) -> tuple[HashedBytes, ...] | None:
        """Return what was made of a share, if all of it is still there; forget what is not. Blocking."""
        for each, made in list(self.finished.items()):
            if not all(self.part(hashed).exists() for hashed in made):
                del self.finished[each]
        return self.finished.get(share)

    async def read(self, share: HubShare, shard: SharedShard, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` (exclusive) of a shard, from the hub, making no more of it. Raises SourceUnavailable."""
        data = bytearray()
        async with self.hub.connect() as connections:
            for part in _parts_of(shard, start, end):
                if isinstance(part, bytes):
                    data += part
                else:
                    what = f"a sample of {share.repository}"
                    data += await patiently(partial(self._range, connections, share, *part), what, self.pause)
        return bytes(data)

    async def _range(
        self, connections: httpx.AsyncClient, share: HubShare, tensor: SharedTensor, start: int, end: int
    ) -> bytes:
        file, data = share.files[tensor.file], bytearray()
        async with self.hub.open_range(connections, _repository(share), file, start, end) as pieces:
            async for piece in pieces:
                data += piece
        if len(data) != end - start:
            raise HubTrouble(f"{len(data)} bytes came of {end - start}")
        return bytes(data)

    async def _open(self, file: HubFile, stack: AsyncExitStack) -> Mirror:
        mirror = await self.lanes.run("hashing", open_mirror, self.paths.transfers, file.oid, file.nbytes)
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
    layout, places = SafetensorsLayout.of(shard.descriptors), {tensor.name: tensor for tensor in shard.tensors}
    yield layout.header
    for ordered in layout.tensors:
        tensor = places[ordered.name]
        for piece in FileRegion(files[tensor.file], tensor.offset, tensor.nbytes).pieces():
            trio.from_thread.check_cancelled()
            yield piece


def _parts_of(shard: SharedShard, start: int, end: int) -> Iterator[bytes | tuple[SharedTensor, int, int]]:
    """Yield what some bytes of a shard are made of: bytes of the shard's header, and ranges of the files of tensors."""
    layout, places = SafetensorsLayout.of(shard.descriptors), {tensor.name: tensor for tensor in shard.tensors}
    at = len(layout.header)
    if start < at:
        yield layout.header[start:end]
    for ordered in layout.tensors:
        tensor = places[ordered.name]
        first, last = max(start, at), min(end, at + tensor.nbytes)
        if first < last:
            yield tensor, tensor.offset + first - at, tensor.offset + last - at
        at += tensor.nbytes
