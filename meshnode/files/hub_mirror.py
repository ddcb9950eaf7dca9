"""What has come of a file on a hub, in any order: `<data>/transfers/<key>.mirror`, a sparse file of the same size.

Beside it lies `<key>.blocks`: one record for each block, its number and its BLAKE3. What is there after a crash or a restart is
known by these hashes; a record without its bytes does not count, and neither do bytes without a record.

Two models may have a file in common, a tokenizer for example, and come at the same time: whoever is done last deletes its mirror.
"""

import fcntl
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import attrs
from blake3 import blake3

from meshnode.errors import FileError

__all__ = [
    "BLOCK_BYTES",
    "Mirror",
    "any_mirror",
    "forget_linked",
    "forget_mirror",
    "forget_mirrors",
    "mirror_written",
    "open_mirror",
]

BLOCK_BYTES = 256 << 10  # little is fetched twice where two nodes share a file

_RECORD = struct.Struct("<Q32s")
_MIRROR, _RECORDS = ".mirror", ".blocks"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


@attrs.define(eq=False)
class Mirror:
    """An open mirror. `write` may be called by several threads at once, for different blocks."""

    path: Path
    nbytes: int  # of the file on the hub
    held: set[int]  # numbers of the blocks that are there
    _descriptor: int
    _records: int

    def size_of(self, block: int) -> int:
        """Return the bytes of a block."""
        return min(BLOCK_BYTES, self.nbytes - block * BLOCK_BYTES)

    def blocks_of(self, start: int, end: int) -> range:
        """Return the blocks that bytes `start` to `end` (exclusive) lie in."""
        return range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))

    def start_of(self, block: int) -> int:
        """Return where in the file a block begins."""
        return block * BLOCK_BYTES

    def has(self, start: int, end: int) -> bool:
        """Whether bytes `start` to `end` (exclusive) are there."""
        return self.held.issuperset(self.blocks_of(start, end))

    def read(self, start: int, end: int) -> bytes:
        """Return bytes that are there. Raises FileError."""
        try:
            return os.pread(self._descriptor, end - start, start)
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror}") from error

    def held_bytes(self, blocks: Iterable[int]) -> int:
        """Return how many bytes of these blocks are there."""
        return sum(self.size_of(block) for block in blocks if block in self.held)

    @property
    def is_whole(self) -> bool:
        """Whether the whole file is there."""
        return len(self.held) == len(self.blocks_of(0, self.nbytes))

    def write(self, block: int, data: bytes) -> None:
        """Keep a block. Raises FileError when the disk is full."""
        try:
            view, offset = memoryview(data), block * BLOCK_BYTES
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
            os.write(self._records, _RECORD.pack(block, blake3(data).digest()))
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.held.add(block)

    def close(self) -> None:
        """Close; what is there stays."""
        for descriptor in (self._descriptor, self._records):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._records = -1

    def forget(self) -> None:
        """Close, and delete what is there unless somebody else has it open."""
        self.close()
        _delete_unused(self.path)


def open_mirror(folder: Path, key: str, nbytes: int) -> Mirror:
    """Open the mirror of the file whose version is `key`, and find out which blocks are there. Blocking. Raises FileError."""
    path = _path(folder, key)
    opened: list[int] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened.append(_open_shared(path))
        opened.append(os.open(path.with_suffix(_RECORDS), _FLAGS | os.O_APPEND, 0o644))
        mirror = Mirror(path, nbytes, set(), *opened)
        _read_records(mirror, *opened)
        os.ftruncate(opened[0], nbytes)
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        raise _cannot_write(path, error) from error
    return mirror


def _open_shared(path: Path) -> int:
    """Open a mirror so that others see that it is open. Raises OSError."""
    while True:
        descriptor = os.open(path, _FLAGS, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:  # not deleted between the two
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _read_records(mirror: Mirror, descriptor: int, records: int) -> None:
    """Find the blocks whose bytes are as their records say, and cut off what is left of a record that was being written."""
    size = os.fstat(records).st_size
    whole = size - size % _RECORD.size
    os.ftruncate(records, whole)
    digests = dict(_RECORD.iter_unpack(os.pread(records, whole, 0)))  # the last record of a block counts
    count = len(mirror.blocks_of(0, mirror.nbytes))
    for block, digest in digests.items():
        if (
            block < count
            and blake3(os.pread(descriptor, mirror.size_of(block), block * BLOCK_BYTES)).digest() == digest
        ):
            mirror.held.add(block)


def forget_mirror(folder: Path, key: str) -> None:
    """Delete the mirror of the file whose version is `key`, if there is one that nobody has open. Blocking. Raises FileError."""
    try:
        _delete_unused(_path(folder, key))
    except OSError as error:
        raise _cannot_write(folder, error) from error


def forget_mirrors(folder: Path, oldest: float) -> None:
    """Delete mirrors that nothing has been written to since `oldest` (Unix seconds). Blocking. Raises FileError."""
    try:
        for path in folder.glob(f"*{_MIRROR}") if folder.is_dir() else ():
            if path.stat().st_mtime < oldest:
                _delete(path)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def forget_linked(folder: Path) -> None:
    """Delete the mirrors that links in `folder` lead to, if nobody has them open. Blocking. Raises OSError."""
    for link in folder.rglob("*"):
        if link.is_symlink() and (path := link.readlink()).suffix == _MIRROR:
            _delete_unused(path)


def any_mirror(folder: Path) -> bool:
    """Whether something of a file has come. Blocking."""
    return next(folder.glob(f"*{_MIRROR}"), None) is not None


def mirror_written(folder: Path, key: str) -> float:
    """Return when the mirror of the file whose version is `key` was last written to, Unix seconds; 0 if there is none."""
    try:
        return _path(folder, key).stat().st_mtime
    except OSError:
        return 0.0


def _path(folder: Path, key: str) -> Path:
    return folder / f"{blake3(key.encode()).hexdigest()[:32]}{_MIRROR}"


def _delete_unused(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        _delete(path)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _delete(path)
    except BlockingIOError:  # somebody else uses it, and deletes it in the end
        return
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    path.with_suffix(_RECORDS).unlink(missing_ok=True)
    path.unlink(missing_ok=True)  # last: by it the two are found after a crash


def _cannot_write(path: Path, error: OSError) -> FileError:
    return FileError(f"cannot write to {path.parent}: {error.strerror}; free space or choose another data folder")
