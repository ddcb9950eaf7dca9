"""Imports a GGUF file: header, checks, shards, manifest. Everything that can refuse does so before a byte is written."""

import mmap
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attrs
import msgspec
from blake3 import blake3

from meshnode.errors import FileError, InvalidModelFile, SourceUnavailable
from meshnode.files.gguf_header import GGUFHeader, GGUFTensor, NeedMore, parse_header
from meshnode.files.gguf_metadata import model_config, tokenizer_data
from meshnode.files.layout import check_shapes, plan_shards
from meshnode.files.shard_file import HashedBytes, hash_pieces, safetensors_pieces, write_shard
from meshnode.files.tokenizer_shard import encode_tokenizer
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelConfig, ModelManifest, ShardDescriptor, ShardKind, TensorDescriptor

__all__ = ["build_manifest", "import_gguf", "read_header", "slug"]


def slug(text: str) -> str:
    """Turn a model's title into the name users type: lower case, dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"


def read_header(data: memoryview) -> GGUFHeader:
    """Parse the header of a whole file. Raises InvalidModelFile and UnsupportedModel."""
    header = parse_header(data, file_size=len(data))
    assert not isinstance(header, NeedMore)  # with the whole file there, a short header is an error
    return header


def build_manifest(
    name: str, config: ModelConfig, shards: tuple[ShardDescriptor, ...], *, license_name: str | None, source: str | None
) -> ModelManifest:
    """Make the manifest. Its id is the BLAKE3 of msgpack([1, config, shards]); names and sources are not part of it."""
    canonical = msgspec.msgpack.encode([1, config, shards])
    types = Counter(
        tensor.ggml_type
        for shard in shards
        if shard.kind is ShardKind.BLOCK
        for tensor in shard.tensors
        if len(tensor.shape) > 1
    )
    return ModelManifest(
        id=ModelId(blake3(canonical).hexdigest()),
        name=name,
        config=config,
        shards=shards,
        quantization=types.most_common(1)[0][0] if types else "F32",
        license=license_name,
        source=source,
    )


def import_gguf(
    path: Path,
    shard_folder: Path,
    *,
    name: str | None = None,
    blocks: BlockRange | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ModelManifest:
    """Import a GGUF file into the shard folder and return its manifest.

    With `blocks`, only those blocks' shards are kept (and the embedding and head where they touch its ends); the others are
    hashed, since they are part of the manifest, but not written. `progress` hears (bytes done, bytes in all). Blocking.
    Raises SourceUnavailable, InvalidModelFile, UnsupportedModel, and FileError when a shard cannot be written.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                return _import(view, path, shard_folder, name, blocks, progress or _ignore)
            finally:
                view.release()
    except FileNotFoundError as error:
        raise SourceUnavailable(f"there is no file {path}") from error
    except ValueError as error:
        raise InvalidModelFile(f"{path} is empty") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _ignore(_done: int, _total: int) -> None:
    return


def _import(
    view: memoryview,
    path: Path,
    folder: Path,
    name: str | None,
    blocks: BlockRange | None,
    progress: Callable[[int, int], None],
) -> ModelManifest:
    header = read_header(view)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    config = model_config(header)
    check_shapes(config, {tensor.name: tensor.shape for tensor in header.tensors})
    if "rope_freqs.weight" in tensors:
        config = attrs.evolve(config, rope_factors=_floats(view, tensors["rope_freqs.weight"]))
    plans = plan_shards(config)
    total = sum(tensors[source].nbytes for plan in plans for _, source in plan.tensors)
    hashed = write_shard(folder, [encode_tokenizer(tokenizer_data(header))])
    shards = [ShardDescriptor(hashed.id, ShardKind.TOKENIZER, None, hashed.nbytes, hashed.chunks, ())]
    done = 0
    for plan in plans:
        described = [
            (TensorDescriptor(name, tensors[source].ggml_type, tensors[source].shape, tensors[source].nbytes), source)
            for name, source in plan.tensors
        ]
        pieces = safetensors_pieces([(tensor, _bytes(view, tensors[source])) for tensor, source in described])
        kept = blocks is None or is_kept(plan.kind, plan.block, blocks, config)
        hashed = write_shard(folder, pieces) if kept else hash_pieces(pieces)
        shards.append(_describe(hashed, plan.kind, plan.block, tuple(tensor for tensor, _ in described)))
        done += sum(tensor.nbytes for tensor, _ in described)
        progress(done, total)
    title = header.metadata.get("general.name")
    licence = header.metadata.get("general.license")
    return build_manifest(
        name or slug(title if isinstance(title, str) else path.stem),
        config,
        tuple(shards),
        license_name=licence if isinstance(licence, str) else None,
        source=path.name,
    )


def is_kept(kind: ShardKind, block: int | None, blocks: BlockRange, config: ModelConfig) -> bool:
    """Say whether a node that holds `blocks` keeps this shard: the ends of the model go with its first and last block."""
    if kind is ShardKind.BLOCK:
        assert block is not None
        return block in blocks
    if kind is ShardKind.EMBEDDING:
        return blocks.start == 0
    return kind is ShardKind.TOKENIZER or blocks.end == config.block_count


def _describe(
    hashed: HashedBytes, kind: ShardKind, block: int | None, tensors: tuple[TensorDescriptor, ...]
) -> ShardDescriptor:
    return ShardDescriptor(hashed.id, kind, block, hashed.nbytes, hashed.chunks, tensors)


def _bytes(view: memoryview, tensor: GGUFTensor) -> memoryview:
    return view[tensor.offset : tensor.offset + tensor.nbytes]


def _floats(view: memoryview, tensor: GGUFTensor) -> tuple[float, ...]:
    if tensor.ggml_type != "F32":
        raise InvalidModelFile(f"tensor {tensor.name!r} has type {tensor.ggml_type}; F32 is expected")
    return tuple(_bytes(view, tensor).cast("f"))
