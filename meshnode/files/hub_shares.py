"""A share of a model on a hub: some of its shards, made by one of several nodes that fetch the model together.

Whoever divides the model has read its header, and says of every tensor in which file and where its bytes are; whoever makes a
share fetches these ranges and nothing else, and says what the shards hash to.
"""

from collections.abc import Iterator, Sequence

import attrs
import msgspec

from meshnode.errors import RequestError
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_reference import HUB_PREFIX, HubReference
from meshnode.files.shard_file import HashedBytes, SafetensorsLayout
from meshnode.types.manifest import CHUNK_BYTES, ShardKind, TensorDescriptor

__all__ = ["HubShare", "SharedShard", "SharedTensor", "check_made", "decode_made", "decode_share", "encode_made"]

_MOST_SHARDS = 4096
_MOST_FILES = 1000
_MOST_DIMENSIONS = 8


@attrs.frozen
class SharedTensor:
    """A tensor, and where its bytes are."""

    name: str
    ggml_type: str
    shape: tuple[int, ...]  # outermost dimension first
    nbytes: int
    file: int  # number of the file
    offset: int  # bytes from its beginning


@attrs.frozen
class SharedShard:
    """One shard, which is to be made."""

    kind: ShardKind
    block: int | None
    tensors: tuple[SharedTensor, ...]

    @property
    def place(self) -> str:
        """Where in the model it is, for people."""
        return self.kind.value if self.block is None else f"{self.kind.value} {self.block}"

    @property
    def descriptors(self) -> tuple[TensorDescriptor, ...]:
        """The tensors as a manifest has them."""
        return tuple(TensorDescriptor(each.name, each.ggml_type, each.shape, each.nbytes) for each in self.tensors)

    def placed(self) -> Iterator[tuple[SharedTensor, int]]:
        """Yield the tensors in the order of the shard's file, each with where it begins there."""
        layout, named = SafetensorsLayout.of(self.descriptors), {tensor.name: tensor for tensor in self.tensors}
        at = len(layout.header)
        for ordered in layout.tensors:
            yield named[ordered.name], at
            at += ordered.nbytes

    def pieces(self, start: int, end: int) -> Iterator[bytes | tuple[SharedTensor, int, int]]:
        """Yield what some bytes of the shard's file are made of: bytes of its header, and ranges of the files of tensors."""
        header = SafetensorsLayout.of(self.descriptors).header
        if start < len(header):
            yield header[start:end]
        for tensor, at in self.placed():
            first, last = max(start, at), min(end, at + tensor.nbytes)
            if first < last:
                yield tensor, tensor.offset + first - at, tensor.offset + last - at

    @property
    def nbytes(self) -> int:
        """Bytes of the shard's file."""
        return len(SafetensorsLayout.of(self.descriptors).header) + sum(each.nbytes for each in self.tensors)


@attrs.frozen
class HubShare:
    """Shards of a model, and the files of a repository that they are in."""

    repository: str  # OWNER/REPO
    commit: str
    files: tuple[HubFile, ...]
    shards: tuple[SharedShard, ...]

    def __attrs_post_init__(self) -> None:
        try:
            HubReference.parse(f"{HUB_PREFIX}{self.repository}@{self.commit}")
        except RequestError as error:
            raise ValueError(str(error)) from error
        if not 0 < len(self.files) <= _MOST_FILES or not 0 < len(self.shards) <= _MOST_SHARDS:
            raise ValueError(f"{len(self.files)} files and {len(self.shards)} shards")
        for file in self.files:
            if not file.nbytes > 0 or ".." in file.path.split("/") or not file.path.isprintable():
                raise ValueError(f"a file {file.path[:80]!r} of {file.nbytes} bytes")
        for tensor in (tensor for shard in self.shards for tensor in shard.tensors):
            self._check(tensor)

    def _check(self, tensor: SharedTensor) -> None:
        has_file = 0 <= tensor.file < len(self.files)
        if not has_file or not 0 <= tensor.offset < tensor.offset + tensor.nbytes <= self.files[tensor.file].nbytes:
            raise ValueError(f"tensor {tensor.name[:80]!r} lies outside its file")
        if not 0 < len(tensor.shape) <= _MOST_DIMENSIONS or min(tensor.shape) < 1:
            raise ValueError(f"tensor {tensor.name[:80]!r} has the shape {tensor.shape[:_MOST_DIMENSIONS]}")

    @property
    def nbytes(self) -> int:
        """Bytes of the shards."""
        return sum(shard.nbytes for shard in self.shards)


def decode_share(raw: bytes) -> HubShare:
    """Read a share as it travels, msgpack. Raises RequestError."""
    try:
        return msgspec.msgpack.decode(raw, type=HubShare)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(f"a share that cannot be made: {error}") from error


def encode_made(made: Sequence[HashedBytes]) -> bytes:
    """Return what a share's shards hash to, as it travels."""
    return msgspec.msgpack.encode(made)


def decode_made(raw: bytes, share: HubShare) -> tuple[HashedBytes, ...]:
    """Read what somebody says that a share's shards hash to. Raises ValueError for what they cannot hash to."""
    made = msgspec.msgpack.decode(raw, type=tuple[HashedBytes, ...])  # its error is a ValueError
    check_made(made, share)
    return made


def check_made(made: Sequence[HashedBytes], share: HubShare) -> None:
    """Check what a share's shards are said to hash to. Raises ValueError for what they cannot hash to."""
    for shard, hashed in zip(share.shards, made, strict=True):
        size = shard.nbytes
        digests = (hashed.id, *hashed.chunks)
        if hashed.nbytes != size or len(hashed.chunks) != -(-size // CHUNK_BYTES):
            raise ValueError(f"a shard of {size} bytes is said to have {hashed.nbytes} in {len(hashed.chunks)} chunks")
        if any(len(digest) != 64 or set(digest) - set("0123456789abcdef") for digest in digests):
            raise ValueError("what should be hashes is something else")
