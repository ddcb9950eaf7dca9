"""Reads the header of a GGUF file from a growing prefix of its bytes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The bytes may come from
anybody: counts and lengths are checked against limits, and against the bytes that are there, before anything is allocated.
"""

import math
import struct

import attrs
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from meshnode.errors import InvalidModelFile, UnsupportedModel

__all__ = ["MAX_HEADER_BYTES", "GGUFHeader", "GGUFTensor", "NeedMore", "Value", "parse_header"]

MAX_HEADER_BYTES = 1 << 28
"""A vocabulary of 262,144 tokens with its merges takes some 20 MiB."""

_MAX_ENTRIES = 65_536  # metadata keys, and tensors: a 405B model has about 1,200
_MAX_STRING = 1 << 24  # bytes; the longest are chat templates of some 20 KiB
_MAX_NAME = 1024  # bytes of a key or a tensor's name; ggml itself stops at 64
_MAX_ELEMENTS = 1 << 23  # in all arrays together: vocabularies have up to 262,144 tokens, with as many types and merges
_MAX_DEPTH = 2  # arrays in arrays
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_SMALLEST_PAIR = 8 + 4 + 1  # bytes of a metadata entry: key length, value type, value
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8  # name length, dimensions, one extent, type, offset

Value = bool | int | float | str | list["Value"]


@attrs.frozen
class NeedMore:
    """The prefix is too short; the header is at least this long."""

    at_least: int  # bytes


@attrs.frozen
class GGUFTensor:
    """One entry of the tensor table; shape with the outermost dimension first."""

    name: str
    ggml_type: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int


@attrs.frozen
class GGUFHeader:
    """Everything before the tensor data."""

    version: int
    metadata: dict[str, Value]
    tensors: tuple[GGUFTensor, ...]
    data_offset: int  # bytes from the start of the file


class _Short(Exception):
    """The prefix ended: a signal between the cursor and `parse_header`."""

    def __init__(self, at_least: int) -> None:
        self.at_least = at_least


def parse_header(prefix: bytes | memoryview, *, file_size: int | None = None) -> GGUFHeader | NeedMore:
    """Parse what there is: the header, or how many bytes are needed at least to go on.

    It starts from the beginning every time, so a caller grows its prefix at least twofold. With `file_size`, a header or a
    tensor that reaches beyond it is an error. Raises InvalidModelFile for bytes that are not a sound GGUF header,
    UnsupportedModel for versions and tensor types that are sound but cannot be read here.
    """
    try:
        header = _parse(_Cursor(memoryview(prefix)))
    except _Short as short:
        if file_size is not None and short.at_least > file_size:
            raise InvalidModelFile(
                f"the file ends inside its header: {file_size} bytes, at least {short.at_least} needed; it is truncated"
            ) from None
        return NeedMore(short.at_least)
    for tensor in header.tensors:
        if file_size is not None and tensor.offset + tensor.nbytes > file_size:
            raise InvalidModelFile(
                f"tensor {tensor.name!r} ends at byte {tensor.offset + tensor.nbytes}, but the file has {file_size} bytes; "
                "it is truncated: fetch it again"
            )
    return header


@attrs.define(eq=False)
class _Cursor:
    data: memoryview
    at: int = 0
    elements: int = 0  # of arrays, so far

    def require(self, count: int) -> None:
        end = self.at + count
        if end > MAX_HEADER_BYTES:
            raise InvalidModelFile(
                f"the GGUF header is longer than {MAX_HEADER_BYTES} bytes: the file is damaged or hostile"
            )
        if end > len(self.data):
            raise _Short(end)

    def take(self, count: int) -> memoryview:
        self.require(count)
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def length(self, what: str, limit: int) -> int:
        value = self.number("<Q")
        if value > limit:
            raise InvalidModelFile(
                f"{what} of {value} in the GGUF header, more than {limit}: the file is damaged or hostile"
            )
        return value

    def string(self, what: str, limit: int) -> str:
        raw = bytes(self.take(self.length(f"length of {what}", limit)))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise InvalidModelFile(f"{what} in the GGUF header is not UTF-8") from None


def _parse(cursor: _Cursor) -> GGUFHeader:
    version = _version(cursor)
    tensor_count = cursor.length("tensor count", _MAX_ENTRIES)
    metadata_count = cursor.length("metadata count", _MAX_ENTRIES)
    cursor.require(metadata_count * _SMALLEST_PAIR + tensor_count * _SMALLEST_TENSOR)
    metadata: dict[str, Value] = {}
    for _ in range(metadata_count):
        key = cursor.string("a metadata key", _MAX_NAME)
        if key in metadata:
            raise InvalidModelFile(f"metadata key {key!r} appears twice")
        metadata[key] = _value(cursor, cursor.number("<I"), key, depth=0)
    cursor.require(tensor_count * _SMALLEST_TENSOR)
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise InvalidModelFile(f"general.alignment is {alignment!r:.40}; it must be a multiple of 8, at most {1 << 20}")
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = tuple(attrs.evolve(entry, offset=entry.offset + data_offset) for entry in entries)
    _check_table(tensors, alignment, data_offset)
    return GGUFHeader(version, metadata, tensors, data_offset)


def _version(cursor: _Cursor) -> int:
    start = bytes(cursor.data[:4])
    if start != b"GGUF"[: len(start)]:
        raise InvalidModelFile("not a GGUF file: it does not begin with the letters GGUF")
    cursor.take(4)
    version = cursor.number("<I")
    if version and version & 0xFFFF == 0:
        raise UnsupportedModel("a big-endian GGUF file; convert it with gguf-convert-endian from the gguf package")
    if version not in (2, 3):
        raise UnsupportedModel(f"GGUF version {version}; versions 2 and 3 can be read: convert the model again")
    return version


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> Value:
    if kind in _SCALARS:
        layout = _SCALARS[kind]
        scalar: Value = struct.unpack(layout, cursor.take(struct.calcsize(layout)))[0]
        return scalar
    if kind == _STRING:
        return cursor.string(f"the value of {key!r}", _MAX_STRING)
    if kind != _ARRAY:
        raise InvalidModelFile(f"metadata {key!r} has the unknown type {kind}")
    if depth == _MAX_DEPTH:
        raise InvalidModelFile(f"metadata {key!r} nests arrays deeper than {_MAX_DEPTH}")
    inner = cursor.number("<I")
    if inner not in _SCALARS and inner not in (_STRING, _ARRAY):
        raise InvalidModelFile(f"metadata {key!r} is an array of the unknown type {inner}")
    count = cursor.length(f"array length of {key!r}", _MAX_ELEMENTS - cursor.elements)
    cursor.elements += count
    if inner in _SCALARS:
        array = f"<{count}{_SCALARS[inner][1]}"
        return list(struct.unpack(array, cursor.take(struct.calcsize(array))))
    cursor.require(count * (8 if inner == _STRING else 12))
    return [_value(cursor, inner, key, depth + 1) for _ in range(count)]


def _tensor_entry(cursor: _Cursor) -> GGUFTensor:
    name = cursor.string("a tensor name", _MAX_NAME)
    dimensions = cursor.number("<I")
    if not 1 <= dimensions <= 4:
        raise InvalidModelFile(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.length(f"a dimension of {name!r}", 1 << 40) for _ in range(dimensions)]))
    number = cursor.number("<I")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise UnsupportedModel(f"tensor {name!r} has GGML type {number}, which is unknown here") from None
    values, size = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % values:
        raise InvalidModelFile(
            f"tensor {name!r} has shape {shape}, which type {kind.name} with blocks of {values} cannot have"
        )
    return GGUFTensor(name, kind.name, shape, cursor.number("<Q"), math.prod(shape) // values * size)


def _check_table(tensors: tuple[GGUFTensor, ...], alignment: int, data_offset: int) -> None:
    seen: set[str] = set()
    end = data_offset
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.name in seen:
            raise InvalidModelFile(f"tensor {tensor.name!r} appears twice")
        seen.add(tensor.name)
        if tensor.offset % alignment:
            raise InvalidModelFile(f"tensor {tensor.name!r} is not aligned to {alignment} bytes")
        if tensor.offset < end:
            raise InvalidModelFile(f"tensor {tensor.name!r} overlaps the one before it")
        end = tensor.offset + tensor.nbytes
