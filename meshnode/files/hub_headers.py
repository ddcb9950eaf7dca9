"""Which bytes of a hub's file have to be there before its model can be opened, found out as they come."""

import struct
from pathlib import Path

from meshnode.files.gguf_header import NeedMore, parse_header
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_mirror import BLOCK_BYTES
from meshnode.files.local_gguf import ROPE_FACTORS
from meshnode.files.safetensors_header import MAX_HEADER_BYTES
from meshnode.files.source_file import open_source_file

__all__ = ["header_ranges"]

_Ranges = list[tuple[int, int]]


def header_ranges(file: HubFile, path: Path, known: int) -> _Ranges:
    """Return the bytes that are needed, each range from its first to behind its last, as far as that can be told.

    `path` has the file's first `known` bytes. Of a GGUF or safetensors file these are the header's, of any other all of them.
    Blocking. Raises InvalidModelFile and UnsupportedModel for a header that is unsound.
    """
    if file.name.lower().endswith(".gguf"):
        return _gguf(file, path, known)
    if file.name.endswith(".safetensors"):
        return _safetensors(file, path, known)
    return [(0, file.nbytes)]


def _gguf(file: HubFile, path: Path, known: int) -> _Ranges:
    if known == 0:
        return [(0, min(BLOCK_BYTES, file.nbytes))]
    with open_source_file(path) as opened:
        header = parse_header(opened.prefix(known), file_size=file.nbytes)
    if isinstance(header, NeedMore):
        return [(0, min(max(header.at_least, 2 * known), file.nbytes))]
    factors = [
        (tensor.offset, tensor.offset + tensor.nbytes) for tensor in header.tensors if tensor.name == ROPE_FACTORS
    ]
    return [(0, known), *factors]


def _safetensors(file: HubFile, path: Path, known: int) -> _Ranges:
    if known < 8:
        return [(0, min(BLOCK_BYTES, file.nbytes))]
    with open_source_file(path) as opened:
        start = opened.prefix(8)
    (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
    return [(0, min(8 + length if length <= MAX_HEADER_BYTES else known, file.nbytes))]
