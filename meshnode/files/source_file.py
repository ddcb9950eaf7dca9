"""A file a model is read from: opened once, read in bounded pieces, and checked not to have changed meanwhile.

It is never memory-mapped: when somebody cuts a mapped file short, the next touch ends the process with SIGBUS.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from meshnode.errors import FileError, InvalidModelFile, SourceUnavailable

__all__ = ["PIECE_BYTES", "FileRegion", "SourceFile", "file_version", "open_source_file"]

PIECE_BYTES = 4 << 20
"""The most that is read at once; between two pieces an import can be cancelled."""


@attrs.frozen(eq=False)
class SourceFile:
    """An open file and what its metadata was when it was opened."""

    path: Path
    descriptor: int
    nbytes: int
    modified: int  # ns

    def prefix(self, nbytes: int) -> bytes:
        """Return the first `nbytes` bytes, or all if there are fewer."""
        return FileRegion(self, 0, min(nbytes, self.nbytes)).read()

    def check_unchanged(self) -> None:
        """Raise InvalidModelFile if the file has been written to since it was opened."""
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (self.nbytes, self.modified):
            raise InvalidModelFile(f"{self.path} was changed while it was read; try again when it is complete")


@attrs.frozen(eq=False)
class FileRegion:
    """Consecutive bytes of a file."""

    file: SourceFile
    offset: int
    nbytes: int

    def pieces(self) -> Iterator[bytes]:
        """Read in pieces. Raises InvalidModelFile when the file ends too early, FileError when it cannot be read."""
        at, end = self.offset, self.offset + self.nbytes
        while at < end:
            try:
                piece = os.pread(self.file.descriptor, min(PIECE_BYTES, end - at), at)
            except OSError as error:
                raise FileError(f"cannot read {self.file.path}: {error.strerror}") from error
            if not piece:
                raise InvalidModelFile(f"{self.file.path} ends at byte {at}, {end - at} bytes early; it is truncated")
            at += len(piece)
            yield piece

    def read(self) -> bytes:
        """Read all at once; for what is known to be small."""
        return b"".join(self.pieces())


def file_version(path: Path) -> str:
    """Return a text that changes when the file does. Raises SourceUnavailable."""
    try:
        status = path.stat()
    except OSError as error:
        raise SourceUnavailable(f"cannot open {path}: {error.strerror}") from error
    return f"{path.name}:{status.st_size}:{status.st_mtime_ns};"


@contextmanager
def open_source_file(path: Path) -> Iterator[SourceFile]:
    """Open a regular file for reading. Raises SourceUnavailable with the system's reason."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block the thread
    except OSError as error:
        raise SourceUnavailable(f"cannot open {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceUnavailable(f"{path} is not a regular file")
        yield SourceFile(path, descriptor, status.st_size, status.st_mtime_ns)
    finally:
        os.close(descriptor)
