"""Local GGUF files as a source."""

import functools
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.gguf_header import GGUFHeader, GGUFTensor, NeedMore, parse_header
from meshnode.files.gguf_metadata import model_config, tokenizer_data
from meshnode.files.gguf_parts import check_parts, part_paths
from meshnode.files.layout import check_tensors
from meshnode.files.manifests import name_from_title
from meshnode.files.source_file import FileRegion, SourceFile, file_version, open_source_file
from meshnode.files.sources import KeepShard, ModelOpener, Origin, ReportBytes, SourceModel, SourceTensor
from meshnode.files.tokenizer_shard import check_tokenizer
from meshnode.files.typed_fields import TypedFields
from meshnode.flow.lanes import Lanes
from meshnode.types.manifest import TensorDescriptor

__all__ = ["ROPE_FACTORS", "LocalGGUF", "open_gguf", "read_header"]

_FIRST_READ = 4 << 20
ROPE_FACTORS = "rope_freqs.weight"
"""The one tensor that belongs to the configuration."""


@attrs.frozen(eq=False)
class LocalGGUF:
    """References that are paths of GGUF files."""

    lanes: Lanes = attrs.field(factory=Lanes)

    def accepts(self, reference: str) -> bool:
        """Say whether `reference` ends like a GGUF file."""
        return reference.lower().endswith(".gguf")

    def canonical(self, reference: str) -> str:
        """Return the absolute path."""
        return os.path.abspath(os.path.expanduser(reference))  # noqa: PTH100, PTH111  # text only, no symlinks followed

    async def look(self, reference: str) -> Origin:
        """Return the file's size and time of change, those of all parts of a split one. Raises SourceUnavailable."""
        return Origin(reference, await self.lanes.run("disk", _version, Path(reference)))

    @asynccontextmanager
    async def prepared(
        self,
        reference: str,
        scratch: Path,  # noqa: ARG002
        report: ReportBytes,  # noqa: ARG002
        needs: KeepShard | None = None,  # noqa: ARG002
    ) -> AsyncIterator[ModelOpener]:
        """Give what opens the file; there is nothing to download."""
        yield functools.partial(open_gguf, Path(reference))


def _version(path: Path) -> str:
    return "".join(file_version(part) for part in part_paths(path))


def read_header(file: SourceFile) -> GGUFHeader:
    """Read as much of a file as its header takes, and parse it. Raises InvalidModelFile and UnsupportedModel."""
    size = _FIRST_READ
    while True:
        header = parse_header(file.prefix(size), file_size=file.nbytes)
        if not isinstance(header, NeedMore):
            return header
        size = max(header.at_least, 2 * size)


@contextmanager
def open_gguf(
    path: Path, *, name: str | None = None, origin: str | None = None, aliases: tuple[str, ...] = ()
) -> Iterator[SourceModel]:
    """Open a GGUF file, all parts of one that was split, and check everything the headers say.

    The name is `name`, else the title in the file, else the file's own; the origin is the file's name if not given. Raises
    SourceUnavailable, InvalidModelFile and UnsupportedModel.
    """
    with ExitStack() as stack:
        files = tuple(stack.enter_context(open_source_file(part)) for part in part_paths(path))
        headers = tuple(read_header(file) for file in files)
        metadata = TypedFields(headers[0].metadata, "the GGUF metadata")
        _check_kind(metadata)
        check_parts(path, headers)
        tokenizer = tokenizer_data(metadata)
        check_tokenizer(tokenizer)
        tensors = {
            tensor.name: _source_tensor(file, tensor)
            for file, header in zip(files, headers, strict=True)
            for tensor in header.tensors
        }
        factors = tensors.pop(ROPE_FACTORS, None)
        config = model_config(metadata, vocabulary_size=len(tokenizer.tokens), tied="output.weight" not in tensors)
        check_tensors(config, {name: tensor.descriptor for name, tensor in tensors.items()})
        if factors is not None:
            config = attrs.evolve(config, rope_factors=_read_factors(factors, config.rope_size))
        yield SourceModel(
            name=name or name_from_title(metadata.get("general.name", str, path.stem)),
            config=config,
            tokenizer=tokenizer,
            tensors=tensors,
            files=files,
            license=metadata.get("general.license", str, "") or None,
            origin=origin or path.name,
            aliases=aliases,
        )


def _check_kind(metadata: TypedFields) -> None:
    kind = metadata.get("general.type", str, "model")
    if kind != "model":
        raise UnsupportedModel(f"a GGUF file of type {kind!r}, not a model")


def _source_tensor(file: SourceFile, tensor: GGUFTensor) -> SourceTensor:
    return SourceTensor(
        TensorDescriptor(tensor.name, tensor.ggml_type, tensor.shape, tensor.nbytes),
        FileRegion(file, tensor.offset, tensor.nbytes),
    )


def _read_factors(tensor: SourceTensor, rope_size: int) -> tuple[float, ...]:
    """Return the divisors of the rotary frequencies that Llama 3 files carry as a tensor."""
    expected, found = (rope_size // 2,), tensor.descriptor
    if found.shape != expected:
        raise InvalidModelFile(f"tensor {found.name!r} should have shape {expected}, but has {found.shape}")
    if found.ggml_type != "F32":
        raise UnsupportedModel(f"tensor {found.name!r} has GGML type {found.ggml_type}; known: F32")
    factors = struct.unpack(f"<{expected[0]}f", tensor.region.read())
    if not all(0.0 < factor < float("inf") for factor in factors):
        raise InvalidModelFile(f"tensor {found.name!r} holds values that are not positive numbers")
    return factors
