"""Shard files: written deterministically, stored under their hash, verified, quarantined.

A weight shard is a safetensors file (https://github.com/huggingface/safetensors#format) whose quantised tensors are the
source's bytes as U8 [rows, row_bytes]. Tensors come in a fixed order, the widest element first so that each is aligned to its
own size, and the header is padded with spaces so that the data begins at a multiple of 64 bytes.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
from blake3 import blake3

from meshnode.errors import FileError, ShardCorrupt
from meshnode.types.ids import ShardId, short
from meshnode.types.manifest import CHUNK_BYTES, ShardDescriptor, TensorDescriptor

__all__ = [
    "HashedBytes",
    "SafetensorsLayout",
    "StepBytes",
    "hash_pieces",
    "is_shard_id",
    "publish_shard",
    "quarantine_shard",
    "shard_file_name",
    "shard_path",
    "verify_shard",
    "verify_size",
    "write_shard",
]

_PLAIN = {"F32": ("F32", 4), "F16": ("F16", 2), "BF16": ("BF16", 2)}
_ALIGNMENT = 64
_READ_BYTES = 4 << 20

StepBytes = Callable[[int], None]
"""Told the size of every piece of work done, in bytes. What it raises ends the work."""


@attrs.frozen
class HashedBytes:
    """What identifies some bytes: their hash, the hashes of their chunks, their number."""

    id: ShardId
    chunks: tuple[str, ...]
    nbytes: int


def is_shard_id(text: str) -> bool:
    """Say whether `text` is 64 lower-case hex digits; only such text may become part of a path."""
    return len(text) == 64 and all(digit in "0123456789abcdef" for digit in text)


def shard_file_name(shard: ShardId) -> str:
    """Return the name of a shard's file. Raises FileError for what is not a shard id."""
    if not is_shard_id(shard):
        raise FileError(f"{shard[:80]!r} is not a shard id")
    return f"{shard}.shard"


def shard_path(folder: Path, shard: ShardId) -> Path:
    """Return where a shard lies below the shard folder."""
    return folder / shard[:2] / shard_file_name(shard)


@attrs.frozen
class SafetensorsLayout:
    """The header of a weight shard and the order its tensors' bytes follow in."""

    header: bytes
    tensors: tuple[TensorDescriptor, ...]

    @classmethod
    def of(cls, tensors: Sequence[TensorDescriptor]) -> "SafetensorsLayout":
        """Lay out these tensors; the same tensors give the same header in whatever order they are named."""
        ordered = tuple(sorted(tensors, key=lambda tensor: (-_element(tensor)[1], tensor.name)))
        types = {tensor.name: [tensor.ggml_type, *tensor.shape] for tensor in ordered}
        header: dict[str, object] = {
            "__metadata__": {
                "format": "meshnode-shard-1",
                "ggml": json.dumps(types, sort_keys=True, separators=(",", ":")),  # the format allows only strings here
            }
        }
        offset = 0
        for tensor in ordered:
            dtype, _ = _element(tensor)
            rows = tensor.shape[0]
            shape = [rows, tensor.nbytes // rows] if dtype == "U8" else list(tensor.shape)
            header[tensor.name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + tensor.nbytes]}
            offset += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        return cls(struct.pack("<Q", len(text)) + text, ordered)


def _element(tensor: TensorDescriptor) -> tuple[str, int]:
    return _PLAIN.get(tensor.ggml_type, ("U8", 1))


@attrs.frozen(eq=False)
class _Output:
    descriptor: int

    def write(self, view: memoryview) -> None:
        while len(view):
            view = view[os.write(self.descriptor, view) :]


def hash_pieces(pieces: Iterable[bytes], output: _Output | None = None) -> HashedBytes:
    """Hash consecutive pieces as one file, and write them to `output` on the way."""
    whole, chunk, room = blake3(), blake3(), CHUNK_BYTES
    chunks: list[str] = []
    total = 0
    for piece in pieces:
        view = memoryview(piece)
        whole.update(view)
        if output is not None:
            output.write(view)
        total += len(view)
        while len(view) >= room:
            chunks.append(chunk.update(view[:room]).hexdigest())
            view, chunk, room = view[room:], blake3(), CHUNK_BYTES
        chunk.update(view)
        room -= len(view)
    if room < CHUNK_BYTES:
        chunks.append(chunk.hexdigest())
    return HashedBytes(ShardId(whole.hexdigest()), tuple(chunks), total)


def write_shard(staging: Path, pieces: Iterable[bytes]) -> HashedBytes:
    """Write a shard into `staging` under its file name: hash while writing, fsync, read back.

    What `pieces` raises ends the writing. Raises FileError with the system's reason (disk full, read-only). Nothing is left
    behind then.
    """
    temporary = staging / "shard.writing"
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            hashed = hash_pieces(pieces, _Output(descriptor))
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):  # else the page cache answers, and a bad disk goes unnoticed
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        if _hash_file(temporary) != hashed.id:
            raise ShardCorrupt(f"{staging} returned other bytes than were written to it; check the disk")
        temporary.replace(staging / shard_file_name(hashed.id))
    except OSError as error:
        raise FileError(f"cannot write a shard to {staging}: {_reason(error)}; free space or choose another") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return hashed


def publish_shard(staging: Path, folder: Path, shard: ShardId) -> Path:
    """Move a staged shard to its place below the shard folder, durably. Raises FileError."""
    target = shard_path(folder, shard)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / target.name).replace(target)
        for parent in (target.parent, folder):
            _sync_folder(parent)
    except OSError as error:
        raise FileError(f"cannot move a shard to {target.parent}: {_reason(error)}") from error
    return target


def verify_size(folder: Path, shard: ShardDescriptor) -> None:
    """Raise ShardCorrupt for a shard that is there with another size, FileError for one that is not there."""
    try:
        size = shard_path(folder, shard.id).stat().st_size
    except OSError as error:
        raise FileError(f"shard {short(shard.id)} cannot be read: {_reason(error)}") from error
    if size < shard.nbytes:
        raise ShardCorrupt(f"shard {short(shard.id)} is truncated: {size} of {shard.nbytes} bytes")
    if size > shard.nbytes:
        raise ShardCorrupt(f"shard {short(shard.id)} has {size} bytes instead of {shard.nbytes}")


def verify_shard(folder: Path, shard: ShardDescriptor, step: StepBytes | None = None) -> None:
    """Check the size, then the hash; `step` hears the size of every piece read, and what it raises ends the work.

    Raises ShardCorrupt saying which of the two is wrong, FileError when the file is missing. A file that is there and cannot
    be read, a bad sector for example, is corrupt.
    """
    verify_size(folder, shard)
    try:
        found = _hash_file(shard_path(folder, shard.id), step)
    except OSError as error:
        raise ShardCorrupt(f"shard {short(shard.id)} cannot be read from disk: {_reason(error)}") from error
    if found != shard.id:
        raise ShardCorrupt(f"shard {short(shard.id)} has changed on disk: its bytes do not match its hash")


def quarantine_shard(folder: Path, quarantine: Path, shard: ShardId) -> None:
    """Move a shard that failed verification out of reach. Raises FileError."""
    try:
        quarantine.mkdir(parents=True, exist_ok=True)
        shard_path(folder, shard).replace(quarantine / shard_file_name(shard))
    except OSError as error:
        raise FileError(f"cannot move shard {short(shard)} to {quarantine}: {_reason(error)}") from error


def _hash_file(path: Path, step: StepBytes | None = None) -> str:
    hasher = blake3()
    for piece in _file_pieces(path):
        hasher.update(piece)
        if step is not None:
            step(len(piece))
    return hasher.hexdigest()


def _file_pieces(path: Path) -> Iterator[memoryview]:
    # Read, not mapped: reading a bad sector of a mapped file ends the process.
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
