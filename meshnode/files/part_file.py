"""A shard that comes in pieces, in any order, from anybody: `<data>/transfers/<shard>.part`.

Every chunk is checked against the manifest before it is written, and again when the file is opened: what is there after a crash
or a restart is known by its hash, not by a record that might lie. A file that is whole is moved into a staging folder. Models may
have a shard in common, and come at the same time: whoever finds the file taken along has it open still, and copies it.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs
from blake3 import blake3

from meshnode.errors import FileError, ShardCorrupt
from meshnode.files.shard_file import shard_file_name, write_shard
from meshnode.types.ids import ShardId, short
from meshnode.types.manifest import CHUNK_BYTES, ShardDescriptor

__all__ = ["PartFile", "begun", "forget_parts", "newest_of", "open_part"]


@attrs.define(eq=False)
class PartFile:
    """An open part. `write` may be called by several threads at once, for different chunks."""

    shard: ShardDescriptor
    path: Path
    _descriptor: int
    held: set[int]  # numbers of the chunks that are there

    def size_of(self, number: int) -> int:
        """Return the bytes of a chunk."""
        return min(CHUNK_BYTES, self.shard.nbytes - number * CHUNK_BYTES)

    def has(self, start: int, end: int) -> bool:
        """Whether bytes `start` to `end` (exclusive) of the shard are there."""
        return self.held.issuperset(range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES)))

    def read(self, start: int, end: int) -> bytes:
        """Return bytes that are there. Raises FileError."""
        try:
            return os.pread(self._descriptor, end - start, start)
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror}") from error

    @property
    def done_bytes(self) -> int:
        """Bytes that are there."""
        last = len(self.shard.chunks) - 1
        return len(self.held) * CHUNK_BYTES - (CHUNK_BYTES - self.size_of(last) if last in self.held else 0)

    def write(self, number: int, data: bytes) -> None:
        """Check a chunk and keep it. Raises ShardCorrupt for other bytes than the manifest's, FileError when the disk is full."""
        if len(data) != self.size_of(number) or blake3(data).hexdigest() != self.shard.chunks[number]:
            raise ShardCorrupt(f"chunk {number} of shard {short(self.shard.id)} has other bytes than its manifest says")
        try:
            view = memoryview(data)
            offset = number * CHUNK_BYTES
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.held.add(number)

    def sync(self) -> None:
        """Bring to the disk what has been written. Raises FileError."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def finish(self, staging: Path) -> None:
        """Move the whole shard into `staging`, durably, and close. Raises FileError."""
        place = staging / shard_file_name(self.shard.id)
        try:
            os.fsync(self._descriptor)
            if self._is_at(self.path):
                with suppress(FileNotFoundError):
                    self.path.replace(place)
            if not self._is_at(place):
                write_shard(staging, self._pieces())
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        finally:
            self.close()

    def _is_at(self, path: Path) -> bool:
        """Whether the file at a path, if any, is the one that is open."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def _pieces(self) -> Iterator[bytes]:
        for start in range(0, self.shard.nbytes, CHUNK_BYTES):
            yield self.read(start, min(start + CHUNK_BYTES, self.shard.nbytes))

    def close(self) -> None:
        """Close; what is there stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_part(folder: Path, shard: ShardDescriptor) -> PartFile:
    """Open a shard's part, and find out by their hashes which chunks are there. Blocking. Raises FileError."""
    path = _path(folder, shard.id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_write(path, error) from error
    part = PartFile(shard, path, descriptor, set())
    try:
        size = os.fstat(descriptor).st_size
        for number, expected in enumerate(shard.chunks):
            if number * CHUNK_BYTES >= size:
                break
            if blake3(os.pread(descriptor, part.size_of(number), number * CHUNK_BYTES)).hexdigest() == expected:
                part.held.add(number)
        os.ftruncate(descriptor, shard.nbytes)
    except OSError as error:
        part.close()
        raise _cannot_write(path, error) from error
    return part


def begun(folder: Path, shard: ShardId) -> bool:
    """Whether a shard has a part, of which something may be there. Blocking."""
    return _path(folder, shard).exists()


def forget_parts(folder: Path, whole: frozenset[ShardId], oldest: float) -> None:
    """Delete the parts of shards that are `whole`, and those untouched since `oldest` (Unix seconds). Raises FileError."""
    try:
        for path in folder.glob("*.part") if folder.is_dir() else ():
            if ShardId(path.stem) in whole or path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _path(folder: Path, shard: ShardId) -> Path:
    return folder / f"{shard}.part"


def newest_of(folder: Path) -> float:
    """Return when anything in a folder was written last, Unix seconds; 0 if nothing is there. Raises FileError.

    A clock may jump by weeks, and that must not make old what came last.
    """
    try:
        return max((path.stat().st_mtime for path in folder.iterdir()), default=0.0) if folder.is_dir() else 0.0
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> FileError:
    return FileError(f"cannot write to {path.parent}: {error.strerror}; free space or choose another data folder")
