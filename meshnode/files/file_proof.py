"""Whether shards are all of what a hub has, bit for bit: the files they were made from are put together again, and hashed.

What of a file is in no shard, its header above all, comes from the hub. Nothing is written: the bytes pass by.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import attrs
import trio

from meshnode.files.hub_shares import HubShare, SharedShard
from meshnode.files.shard_file import SafetensorsLayout
from meshnode.files.share_making import ShareMaker
from meshnode.files.source_file import FileRegion, open_source_file

__all__ = ["differences"]

_PADDING = 32  # bytes that lie between tensors are zeros
_MOST_GAPS = 64
_MOST_BYTES = 256 << 20  # of a file that are in no shard


@attrs.frozen
class _Place:
    """Where the bytes of a tensor are, in its file and in its shard."""

    offset: int
    nbytes: int
    path: Path
    at: int

    def pieces(self) -> Iterator[bytes]:
        with open_source_file(self.path) as file:
            for piece in FileRegion(file, self.at, self.nbytes).pieces():
                trio.from_thread.check_cancelled()
                yield piece


async def differences(maker: ShareMaker, share: HubShare, paths: Mapping[SharedShard, Path]) -> tuple[str, ...] | None:
    """Return the name of a file that is another one than `paths`, of all shards of a share, are made of, or of such a shard.

    Nothing where all is the same, None where that cannot be told.

    The shards' hashes are known to be right. Raises SourceUnavailable when the hub does not answer, FileError when a shard cannot
    be read.
    """
    async with maker.hub.connect() as connections:
        for number in sorted({tensor.file for shard in share.shards for tensor in shard.tensors}):
            places = sorted(_places(number, paths), key=lambda place: place.offset)
            file, gaps = share.files[number], _gaps(places, share.files[number].nbytes)
            if file.sha256 is None or len(gaps) > _MOST_GAPS or sum(end - start for start, end in gaps) > _MOST_BYTES:
                return None
            others = {start: await maker.fetch(connections, share, number, start, end) for start, end in gaps}
            if await maker.lanes.run("hashing", _sha256, places, others, file.nbytes) != file.sha256:
                return (file.path,)
    return await maker.lanes.run("hashing", _odd_ones, paths)


def _places(number: int, paths: Mapping[SharedShard, Path]) -> Iterator[_Place]:
    for shard, path in paths.items():
        for tensor, at in shard.placed():
            if tensor.file == number:
                yield _Place(tensor.offset, tensor.nbytes, path, at)


def _gaps(places: Sequence[_Place], nbytes: int) -> list[tuple[int, int]]:
    """Return what lies before, between and behind, but for padding."""
    ends = [0, *(place.offset + place.nbytes for place in places)]
    starts = [*(place.offset for place in places), nbytes]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if start - end >= _PADDING]


def _sha256(places: Sequence[_Place], others: Mapping[int, bytes], nbytes: int) -> str:
    """Hash a file. Blocking."""
    hasher, at = sha256(), 0

    def reach(offset: int) -> None:
        nonlocal at
        between = others.get(at, bytes(max(0, min(offset - at, _PADDING))))
        hasher.update(between)
        at += len(between)

    for place in places:
        if place.offset < at:  # what two shards share has been hashed
            continue
        reach(place.offset)
        for piece in place.pieces():
            hasher.update(piece)
        at += place.nbytes
    reach(nbytes)
    return hasher.hexdigest()


def _odd_ones(paths: Mapping[SharedShard, Path]) -> tuple[str, ...]:
    """Return a shard that has not the header it must have, or other bytes of a tensor that it shares. Blocking."""
    firsts: dict[tuple[int, int], _Place] = {}
    for shard, path in paths.items():
        header = SafetensorsLayout.of(shard.descriptors).header
        with open_source_file(path) as file:
            if file.prefix(len(header)) != header:
                return (shard.place,)
        for tensor, at in shard.placed():
            place = _Place(tensor.offset, tensor.nbytes, path, at)
            first = firsts.setdefault((tensor.file, tensor.offset), place)
            if first is not place and any(a != b for a, b in zip(first.pieces(), place.pieces(), strict=True)):
                return (shard.place,)
    return ()
