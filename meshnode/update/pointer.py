"""Which version runs: `<data>/updates/current.json`, read by every start, and replaced as a whole.

The installation that reads it may be much older than the version that wrote it, so its format changes only with its number.
"""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from meshnode.errors import UpdateError
from meshnode.update.release import Seen

__all__ = [
    "Pointer",
    "Trial",
    "load_pointer",
    "load_seen",
    "save_pointer",
    "save_seen",
    "slot_of",
    "sync_folder",
    "write_whole",
]

T = TypeVar("T")

_FORMAT = 1
_POINTER, _SEEN, _SLOTS = "current.json", "seen.json", "slots"


class Trial(msgspec.Struct, frozen=True):
    """The current version has not been ready yet."""

    tries: int = 0  # times it was started
    pid: int = 0  # of the process that tries it; 0: none does
    started: float = 0.0  # when that process was created, Unix seconds: numbers of processes come again


class Pointer(msgspec.Struct, frozen=True):
    """What runs at the next start. None: the installation itself."""

    format: int = _FORMAT
    current: str | None = None
    previous: str | None = None  # what runs when `current` does not become ready
    trial: Trial | None = None
    failed: dict[str, str] = {}  # version -> why it was taken back; it is not tried again


def slot_of(folder: Path, version: str) -> Path:
    """Return where a version's code lies."""
    return folder / _SLOTS / version


def load_pointer(folder: Path) -> Pointer:
    """Return the pointer of an updates folder. Raises UpdateError when it cannot be read, or is of a later format."""
    pointer = _load(folder / _POINTER, Pointer)
    if pointer.format != _FORMAT:
        raise UpdateError(
            f"{folder / _POINTER} has format {pointer.format}, and this installation knows {_FORMAT}; install a newer one"
        )
    return pointer


def save_pointer(folder: Path, pointer: Pointer) -> None:
    """Replace the pointer; when this returns it is on the disk. Raises UpdateError."""
    write_whole(folder / _POINTER, msgspec.json.encode(pointer))


class _Streams(msgspec.Struct, frozen=True):
    """What was seen, by channel and publisher: one's sequences say nothing of another's."""

    streams: dict[str, Seen] = {}


def load_seen(folder: Path, stream: str) -> Seen:
    """Return the highest release of a stream that was seen. Raises UpdateError."""
    return _load(folder / _SEEN, _Streams).streams.get(stream, Seen())


def save_seen(folder: Path, stream: str, seen: Seen) -> None:
    """Remember the highest release of a stream, over restarts and power cuts. Raises UpdateError."""
    before = _load(folder / _SEEN, _Streams).streams
    write_whole(folder / _SEEN, msgspec.json.encode(_Streams({**before, stream: seen})))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that there is always either the old or the new one. Raises UpdateError."""
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UpdateError(f"cannot write {path}: {error.strerror or error}; free some space") from error


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UpdateError(
            f"{path} cannot be read: {error}; delete it to begin anew without what it remembers"
        ) from error
