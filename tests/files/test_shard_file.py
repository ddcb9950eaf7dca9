"""Shard files on their own: layout, verification, quarantine."""

import errno
import json
import os
import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import FileError, ShardCorrupt
from meshnode.files import shard_file
from meshnode.files.shard_file import (
    SafetensorsLayout,
    hash_pieces,
    publish_shard,
    quarantine_shard,
    shard_path,
    verify_shard,
    write_shard,
)
from meshnode.types.manifest import CHUNK_BYTES, ShardDescriptor, ShardKind, TensorDescriptor


def _stored(tmp_path, raw: bytes = b"weights" * 1000) -> ShardDescriptor:
    hashed = write_shard(tmp_path, [raw[:10], raw[10:]])
    publish_shard(tmp_path, tmp_path / "shards", hashed.id)
    return ShardDescriptor(hashed.id, ShardKind.BLOCK, 0, hashed.nbytes, hashed.chunks, ())


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 3))
def test_hashes_do_not_depend_on_how_the_bytes_come(pieces, times):
    pieces = [piece * 3000 for piece in pieces] * times
    raw = b"".join(pieces)
    hashed = hash_pieces(pieces)
    assert (hashed.id, hashed.nbytes) == (blake3(raw).hexdigest(), len(raw))
    chunks = [raw[at : at + CHUNK_BYTES] for at in range(0, len(raw), CHUNK_BYTES)]
    assert list(hashed.chunks) == [blake3(chunk).hexdigest() for chunk in chunks]


def test_the_layout_does_not_depend_on_the_order_of_naming_and_aligns_every_type():
    tensors = [
        TensorDescriptor("b", "Q4_0", (3, 32), 54),
        TensorDescriptor("a", "Q8_0", (1, 32), 34),
        TensorDescriptor("half", "F16", (3,), 6),
        TensorDescriptor("norm", "F32", (5,), 20),
    ]
    layout = SafetensorsLayout.of(tensors)
    assert layout == SafetensorsLayout.of(tensors[::-1])
    assert [tensor.name for tensor in layout.tensors] == ["norm", "half", "a", "b"]
    assert len(layout.header) % 64 == 0
    header = json.loads(layout.header[8:])
    assert struct.unpack("<Q", layout.header[:8]) == (len(layout.header) - 8,)
    assert header["b"] == {"dtype": "U8", "shape": [3, 18], "data_offsets": [60, 114]}


def test_a_good_shard_passes_and_reports_what_was_read(tmp_path):
    shard, read = _stored(tmp_path), []
    verify_shard(tmp_path / "shards", shard, read.append)
    assert sum(read) == shard.nbytes


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw[:-1], "is truncated: 6999 of 7000 bytes"),
        (lambda raw: b"", "is truncated: 0 of 7000 bytes"),
        (lambda raw: raw + b"x", "has 7001 bytes instead of 7000"),
        (lambda raw: bytes([raw[0] ^ 1]) + raw[1:], "has changed on disk"),
    ],
)
def test_truncated_and_changed_are_told_apart(damage, words, tmp_path):
    shard = _stored(tmp_path)
    path = shard_path(tmp_path / "shards", shard.id)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ShardCorrupt, match=words):
        verify_shard(tmp_path / "shards", shard)


def test_a_missing_shard_is_not_called_corrupt(tmp_path):
    shard = _stored(tmp_path)
    shard_path(tmp_path / "shards", shard.id).unlink()
    with pytest.raises(FileError, match="No such file") as caught:
        verify_shard(tmp_path / "shards", shard)
    assert not isinstance(caught.value, ShardCorrupt)


def test_a_shard_the_disk_cannot_read_is_corrupt(tmp_path, monkeypatch):
    shard = _stored(tmp_path)

    def bad_sector(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shard_file, "_file_pieces", bad_sector)
    with pytest.raises(ShardCorrupt, match="cannot be read from disk: Input/output error"):
        verify_shard(tmp_path / "shards", shard)


def test_a_disk_that_returns_other_bytes_than_were_written_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_file, "_file_pieces", lambda path: iter([b"something else"]))
    with pytest.raises(ShardCorrupt, match="check the disk"):
        write_shard(tmp_path, [b"weights"])
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path):
    def pieces():
        yield b"some"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, pieces())
    assert list(tmp_path.iterdir()) == []


def test_quarantine_moves_the_file_and_keeps_its_bytes(tmp_path):
    shard = _stored(tmp_path)
    path = shard_path(tmp_path / "shards", shard.id)
    raw = path.read_bytes()
    quarantine_shard(tmp_path / "shards", tmp_path / "quarantine", shard.id)
    assert not path.exists()
    assert (tmp_path / "quarantine" / path.name).read_bytes() == raw


def test_publishing_over_the_same_content_is_fine(tmp_path):
    assert _stored(tmp_path) == _stored(tmp_path)


def test_publishing_what_is_not_there_is_an_error(tmp_path):
    shard = _stored(tmp_path)
    with pytest.raises(FileError, match="cannot move a shard"):
        publish_shard(tmp_path, tmp_path / "shards", shard.id)
