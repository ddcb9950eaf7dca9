"""What has come of a model in one way counts in the other: blocks of a hub's files make chunks of shards, and chunks make blocks.

A chunk counts only by its hash. Blocks are made of chunks of a manifest that is taken for the hub's, and are as true as that.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import attrs

from meshnode.errors import ShardCorrupt
from meshnode.files.hub_mirror import Mirror, any_mirror, mirror_written, open_mirror
from meshnode.files.hub_shares import HubShare, SharedShard
from meshnode.files.part_file import PartFile, begun, open_part
from meshnode.types.manifest import CHUNK_BYTES, ShardDescriptor

__all__ = ["Salvage", "blocks_from_parts", "is_anything_begun", "parts_from_blocks"]

_Said = Mapping[SharedShard, ShardDescriptor]

Salvage = Callable[[HubShare, _Said, Path], None]
"""Has what has come in a folder of one count for the other. Blocking; raises FileError."""


def is_anything_begun(folder: Path, shards: Iterable[ShardDescriptor]) -> bool:
    """Whether something of shards, or of a hub's files, may have come. Blocking."""
    return any_mirror(folder) or any(begun(folder, shard.id) for shard in shards)


def parts_from_blocks(share: HubShare, shards: _Said, folder: Path) -> None:
    """Give parts of shards the chunks whose bytes have come of files. Blocking. Raises FileError."""
    with ExitStack() as stack:
        mirrors = {
            number: stack.enter_context(closing(open_mirror(folder, file.oid, file.nbytes)))
            for number, file in enumerate(share.files)
            if mirror_written(folder, file.oid)
        }
        for place, shard in shards.items():
            numbers = [number for number in range(len(shard.chunks)) if _has(place, number, mirrors)]
            if numbers:
                part = stack.enter_context(closing(open_part(folder, shard)))
                for number in sorted(set(numbers) - part.held):
                    with suppress(ShardCorrupt):  # what peers say of this model is not what the hub has
                        part.write(number, _read(place, number, mirrors))


def _has(place: SharedShard, number: int, mirrors: Mapping[int, Mirror]) -> bool:
    return all(
        isinstance(piece, bytes) or (piece[0].file in mirrors and mirrors[piece[0].file].has(*piece[1:]))
        for piece in place.pieces(number * CHUNK_BYTES, (number + 1) * CHUNK_BYTES)
    )


def _read(place: SharedShard, number: int, mirrors: Mapping[int, Mirror]) -> bytes:
    return b"".join(
        piece if isinstance(piece, bytes) else mirrors[piece[0].file].read(*piece[1:])
        for piece in place.pieces(number * CHUNK_BYTES, (number + 1) * CHUNK_BYTES)
    )


@attrs.frozen
class _Span:
    """A tensor in its file, and where it begins in its shard."""

    offset: int
    nbytes: int
    part: PartFile
    at: int

    def piece(self, start: int, end: int) -> bytes:
        """Return what is there of bytes `start` to `end` of the file, from `start` on, which must lie in the tensor."""
        first, last = self.at + start - self.offset, self.at + min(end - self.offset, self.nbytes)
        return self.part.read(first, last) if self.part.has(first, last) else b""


def blocks_from_parts(share: HubShare, shards: _Said, folder: Path) -> None:
    """Give files the blocks that chunks of shards make up. Blocking. Raises FileError."""
    with ExitStack() as stack:
        spans: dict[int, list[_Span]] = {}
        for place, shard in shards.items():
            if begun(folder, shard.id):
                part = stack.enter_context(closing(open_part(folder, shard)))
                for tensor, at in place.placed():
                    spans.setdefault(tensor.file, []).append(_Span(tensor.offset, tensor.nbytes, part, at))
        for number, found in spans.items():
            file = share.files[number]
            mirror = stack.enter_context(closing(open_mirror(folder, file.oid, file.nbytes)))
            touched = {block for span in found for block in mirror.blocks_of(span.offset, span.offset + span.nbytes)}
            found.sort(key=lambda span: span.offset)
            for block in sorted(touched - mirror.held):
                if (data := _block(mirror, block, found)) is not None:
                    mirror.write(block, data)


def _block(mirror: Mirror, block: int, spans: list[_Span]) -> bytes | None:
    """Return a block that tensors, in their order, make up from end to end by chunks that are there; else None."""
    at, end, data = mirror.start_of(block), mirror.start_of(block) + mirror.size_of(block), bytearray()
    for span in spans:
        if span.offset <= at < min(end, span.offset + span.nbytes):
            piece = span.piece(at, end)
            data += piece
            at += len(piece)
    return bytes(data) if at == end else None
