"""Reads the header of a GGUF file from a growing prefix of its bytes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Counts and lengths are
checked against limits before anything is allocated: the bytes may come from anybody.
"""

import struct
from collections.abc import Callable

import attrs
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from meshnode.errors import InvalidModelFile, UnsupportedModel

__all__ = ["GGUFHeader", "GGUFTensor", "NeedMore", "parse_header"]

_MAX_ENTRIES = 65_536  # metadata keys, and tensors: a 405B model has about 1,200
_MAX_STRING = 1 << 24  # bytes; the longest are chat templates of some 20 KiB
_MAX_ARRAY = 1 << 22  # elements; vocabularies have up to 262,144 tokens
_MAX_DEPTH = 2  # arrays in arrays
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

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


class _Short(Exception):  # a signal, not an error
    def __init__(self, at_least: int) -> None:
        self.at_least = at_least


def parse_header(prefix: bytes | memoryview, *, file_size: int | None = None) -> GGUFHeader | NeedMore:
    """Parse what there is: the header, or how many bytes are needed at least to go on.

    With `file_size`, tensors that reach beyond it are an error. Raises InvalidModelFile for bytes that are not a sound GGUF
    header, UnsupportedModel for versions and tensor types that are sound but cannot be read here.
    """
    try:
        header = _parse(_Cursor(memoryview(prefix)))
    except _Short as short:
        if file_size is not None and short.at_least > file_size:
            raise InvalidModelFile(
                f"the file ends inside its header: {file_size} bytes, at least {short.at_least} needed; it is truncated"
            ) from None
        return NeedMore(short.at_least)
    if file_size is not None:
        for tensor in header.tensors:
            if tensor.offset + tensor.nbytes > file_size:
                raise InvalidModelFile(
                    f"tensor {tensor.name!r} ends at byte {tensor.offset + tensor.nbytes}, but the file has {file_size} bytes; "
                    "it is truncated: fetch it again"
                )
    return header


@attrs.define(eq=False)
class _Cursor:
    data: memoryview
    at: int = 0

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise _Short(end)
        piece = self.data[self.at : end]
        self.at = end
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

    def string(self, what: str) -> str:
        raw = bytes(self.take(self.length(f"length of {what}", _MAX_STRING)))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise InvalidModelFile(f"{what} in the GGUF header is not UTF-8") from None


def _parse(cursor: _Cursor) -> GGUFHeader:
    if bytes(cursor.take(4)) != b"GGUF":
        raise InvalidModelFile("not a GGUF file: it does not begin with the letters GGUF")
    version = cursor.number("<I")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModel("a big-endian GGUF file; convert it with gguf-convert-endian from the gguf package")
    if version not in (2, 3):
        raise UnsupportedModel(f"GGUF version {version}; versions 2 and 3 can be read")
    tensor_count = cursor.length("tensor count", _MAX_ENTRIES)
    metadata_count = cursor.length("metadata count", _MAX_ENTRIES)
    metadata: dict[str, Value] = {}
    for _ in range(metadata_count):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise InvalidModelFile(f"metadata key {key!r} appears twice")
        metadata[key] = _value(cursor, cursor.number("<I"), key, depth=0)
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 8 or alignment % 8:
        raise InvalidModelFile(f"general.alignment is {alignment!r}; it must be a multiple of 8")
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = tuple(attrs.evolve(entry, offset=entry.offset + data_offset) for entry in entries)
    _check_table(tensors, alignment, data_offset)
    return GGUFHeader(version, metadata, tensors, data_offset)


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> Value:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string(f"the value of {key}")
    if kind != _ARRAY:
        raise InvalidModelFile(f"metadata {key!r} has the unknown type {kind}")
    if depth == _MAX_DEPTH:
        raise InvalidModelFile(f"metadata {key!r} nests arrays deeper than {_MAX_DEPTH}")
    inner = cursor.number("<I")
    count = cursor.length(f"array length of {key}", _MAX_ARRAY)
    if inner in _SCALARS:
        layout = f"<{count}{_SCALARS[inner][1]}"
        return list(struct.unpack(layout, cursor.take(struct.calcsize(layout))))
    read: Callable[[], Value] = lambda: _value(cursor, inner, key, depth + 1)  # noqa: E731  # typed, used once
    return [read() for _ in range(count)]


def _tensor_entry(cursor: _Cursor) -> GGUFTensor:
    name = cursor.string("a tensor name")
    dimensions = cursor.number("<I")
    if not 1 <= dimensions <= 4:
        raise InvalidModelFile(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.length(f"a dimension of {name}", 1 << 40) for _ in range(dimensions)]))
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
    count = 1
    for extent in shape:
        count *= extent
    return GGUFTensor(name, kind.name, shape, cursor.number("<Q"), count // values * size)


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
