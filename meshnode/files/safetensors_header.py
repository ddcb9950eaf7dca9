"""Reads the header of a safetensors file (https://github.com/huggingface/safetensors#format)."""

import json
import math
import struct
from typing import TypeGuard

import attrs

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.source_file import FileRegion, SourceFile

__all__ = ["MAX_HEADER_BYTES", "SafetensorsEntry", "read_safetensors"]

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit."""

_GGML_TYPES = {"F32": ("F32", 4), "F16": ("F16", 2), "BF16": ("BF16", 2)}
_TABLES = {"I64": ("I64", 8)}  # no weights: what some checkpoints keep beside them, and nobody needs


@attrs.frozen
class SafetensorsEntry:
    """One tensor of the file, with GGML's name of its type."""

    name: str
    ggml_type: str
    shape: tuple[int, ...]
    region: FileRegion


def read_safetensors(file: SourceFile) -> tuple[SafetensorsEntry, ...]:
    """Read the table of tensors.

    Raises InvalidModelFile for a file that is truncated or contradicts itself, UnsupportedModel for tensors of a type that
    cannot be read, as quantised checkpoints have.
    """
    name = file.path.name
    start = file.prefix(8)
    if len(start) < 8:
        raise InvalidModelFile(f"{name} is not a safetensors file: it has {len(start)} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES:
        raise InvalidModelFile(f"{name} is not a safetensors file: its header would have {length} bytes")
    if 8 + length > file.nbytes:
        raise InvalidModelFile(f"{name} ends inside its header; it is truncated: fetch it again")
    try:
        header = json.loads(FileRegion(file, 8, length).read())
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"the header of {name} is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise InvalidModelFile(f"the header of {name} is not a JSON object")
    header.pop("__metadata__", None)
    entries = tuple(_entry(file, tensor, described, 8 + length) for tensor, described in header.items())
    end = 8 + length
    for entry in sorted(entries, key=lambda entry: entry.region.offset):
        if entry.region.offset != end:
            raise InvalidModelFile(f"the tensors of {name} overlap or leave a hole before {entry.name!r}")
        end += entry.region.nbytes
    if end > file.nbytes:
        raise InvalidModelFile(f"{name} has {file.nbytes} of {end} bytes; it is truncated: fetch it again")
    return entries


def _entry(file: SourceFile, name: str, described: object, data_start: int) -> SafetensorsEntry:
    if not isinstance(described, dict):
        raise InvalidModelFile(f"tensor {name!r} of {file.path.name} has no description")
    dtype, shape, offsets = (described.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise InvalidModelFile(f"tensor {name!r} of {file.path.name} has no proper shape and offsets")
    if dtype not in _GGML_TYPES | _TABLES:
        raise UnsupportedModel(f"tensor {name!r} has type {str(dtype)[:40]}; known: {', '.join(_GGML_TYPES)}")
    ggml_type, size = (_GGML_TYPES | _TABLES)[dtype]
    if offsets[1] - offsets[0] != math.prod(shape) * size:
        raise InvalidModelFile(f"tensor {name!r} of {file.path.name} has another size than its shape {tuple(shape)}")
    return SafetensorsEntry(
        name, ggml_type, tuple(shape), FileRegion(file, data_start + offsets[0], offsets[1] - offsets[0])
    )


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 60 for item in value)
