"""Shard files: written deterministically, stored under their hash, verified, quarantined.

A weight shard is a safetensors file (https://github.com/huggingface/safetensors#format) whose quantised tensors are the
source's bytes as U8 [rows, row_bytes]. Tensors come in a fixed order, the widest element first so that each is aligned to its
own size, and the header is padded so that the data begins at a multiple of 64 bytes.
"""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
from blake3 import blake3

from meshnode.errors import FileError, ShardCorrupt
from meshnode.types.ids import ShardId
from meshnode.types.manifest import CHUNK_BYTES, ShardDescriptor, TensorDescriptor

__all__ = ["HashedBytes", "hash_pieces", "quarantine", "safetensors_pieces", "shard_path", "verify", "write_shard"]

_PLAIN = {"F32": ("F32", 4), "F16": ("F16", 2), "BF16": ("BF16", 2)}
_ALIGNMENT = 64
_PARTIAL = ".partial"


@attrs.frozen
class HashedBytes:
    """What identifies some bytes: their hash, the hashes of their chunks, their number."""

    id: ShardId
    chunks: tuple[str, ...]
    nbytes: int


def shard_path(folder: Path, shard: ShardId) -> Path:
    """Return where a shard lies below the shard folder; `shard` must be 64 hex digits."""
    if len(shard) != 64 or not all(digit in "0123456789abcdef" for digit in shard):
        raise FileError(f"{shard!r} is not a shard id")
    return folder / shard[:2] / f"{shard}.shard"


def safetensors_pieces(tensors: Sequence[tuple[TensorDescriptor, memoryview]]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file with these tensors, header first."""
    ordered = sorted(tensors, key=lambda item: (-_PLAIN.get(item[0].ggml_type, ("U8", 1))[1], item[0].name))
    header: dict[str, object] = {
        "__metadata__": {
            "format": "meshnode-shard-1",
            "ggml": json.dumps(
                {t.name: [t.ggml_type, *t.shape] for t, _ in ordered}, sort_keys=True, separators=(",", ":")
            ),
        }
    }
    offset = 0
    for tensor, _ in ordered:
        dtype, _size = _PLAIN.get(tensor.ggml_type, ("U8", 1))
        shape = list(tensor.shape) if dtype != "U8" else [tensor.shape[0], tensor.nbytes // tensor.shape[0]]
        header[tensor.name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    yield struct.pack("<Q", len(text)) + text
    for _, data in ordered:
        yield data


def hash_pieces(pieces: Iterable[bytes | memoryview], sink: "_Sink | None" = None) -> HashedBytes:
    """Hash consecutive pieces as one file, and write them to `sink` on the way."""
    whole, chunk, room = blake3(), blake3(), CHUNK_BYTES
    chunks: list[str] = []
    total = 0
    for piece in pieces:
        view = memoryview(piece)
        whole.update(view)
        if sink is not None:
            sink.write(view)
        total += len(view)
        while len(view) >= room:
            chunks.append(chunk.update(view[:room]).hexdigest())
            view, chunk, room = view[room:], blake3(), CHUNK_BYTES
        chunk.update(view)
        room -= len(view)
    if room < CHUNK_BYTES:
        chunks.append(chunk.hexdigest())
    return HashedBytes(ShardId(whole.hexdigest()), tuple(chunks), total)


@attrs.frozen(eq=False)
class _Sink:
    descriptor: int

    def write(self, view: memoryview) -> None:
        while len(view):
            view = view[os.write(self.descriptor, view) :]


def write_shard(folder: Path, pieces: Iterable[bytes | memoryview]) -> HashedBytes:
    """Write a shard: temporary name, hash while writing, fsync, read back, rename, fsync the folder.

    The same content that is already there is left alone. Raises FileError with the system's reason (disk full, read-only);
    nothing is left behind then.
    """
    partial = folder / f"{os.getpid()}-{os.urandom(6).hex()}{_PARTIAL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            hashed = hash_pieces(pieces, _Sink(descriptor))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if blake3().update_mmap(partial).hexdigest() != hashed.id:
            raise ShardCorrupt(f"{folder} returned other bytes than were written to it; check the disk")
        target = shard_path(folder, hashed.id)
        target.parent.mkdir(exist_ok=True)
        partial.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise FileError(
            f"cannot write a shard to {folder}: {error.strerror or error}; free some space or check the folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return hashed


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(folder: Path, shard: ShardDescriptor) -> None:
    """Check size, then hash. Raises ShardCorrupt saying which of the two is wrong, FileError when it cannot be read."""
    path = shard_path(folder, shard.id)
    try:
        size = path.stat().st_size
        if size != shard.nbytes:
            raise ShardCorrupt(f"shard {shard.id[:12]} is truncated: {size} of {shard.nbytes} bytes")
        if blake3().update_mmap(path).hexdigest() != shard.id:
            raise ShardCorrupt(f"shard {shard.id[:12]} has changed on disk: its bytes do not match its hash")
    except OSError as error:
        raise FileError(f"shard {shard.id[:12]} cannot be read: {error.strerror or error}") from error


def quarantine(folder: Path, quarantine_folder: Path, shard: ShardId) -> Path:
    """Move a shard that failed verification out of reach and return where it lies now."""
    target = quarantine_folder / f"{shard}.shard"
    quarantine_folder.mkdir(parents=True, exist_ok=True)
    shard_path(folder, shard).replace(target)
    return target
