"""Turns an opened source into shards and a manifest. Everything that can refuse has done so before a byte is written."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs

from meshnode.errors import FileError, SourceUnavailable
from meshnode.files.layout import ShardPlan, plan_shards
from meshnode.files.local_gguf import open_gguf
from meshnode.files.manifests import build_manifest
from meshnode.files.shard_file import HashedBytes, SafetensorsLayout, hash_pieces, publish_shard, write_shard
from meshnode.files.sources import KeepShard, ReportBytes, SourceModel
from meshnode.files.tokenizer_shard import encode_tokenizer
from meshnode.types.manifest import ModelManifest, ShardDescriptor, ShardKind, TensorDescriptor

__all__ = ["free_bytes", "import_gguf", "import_model", "import_shards", "require_space"]

_SPARE_BYTES = 64 << 20  # for shard headers, the tokenizer, the store


def import_model(model: SourceModel, staging: Path, keep: KeepShard, report: ReportBytes) -> ModelManifest:
    """Write the shards to keep into `staging` and return the manifest of all. Blocking; `report` may end it by raising.

    Raises InvalidModelFile when a source file ends too early or changes meanwhile, FileError when a shard cannot be written.
    """
    plans = plan_shards(model.config)
    require_space(staging, sum(_plan_bytes(model, plan) for plan in plans if keep(plan.kind, plan.block)))
    progress = _Progress(sum(_plan_bytes(model, plan) for plan in plans), report)
    hashed = _write([encode_tokenizer(model.tokenizer)], staging, kept=keep(ShardKind.TOKENIZER, None))
    shards = [ShardDescriptor(hashed.id, ShardKind.TOKENIZER, None, hashed.nbytes, hashed.chunks, ())]
    for plan in plans:
        hashed = _write(_shard_pieces(model, plan, progress), staging, kept=keep(plan.kind, plan.block))
        tensors = _descriptors(model, plan)
        shards.append(ShardDescriptor(hashed.id, plan.kind, plan.block, hashed.nbytes, hashed.chunks, tensors))
    for file in model.files:
        file.check_unchanged()
    return build_manifest(model.name, model.config, tuple(shards), license_name=model.license, source=model.origin)


def import_shards(
    model: SourceModel, manifest: ModelManifest, keep: KeepShard, staging: Path, report: ReportBytes
) -> None:
    """Write shards of a model whose manifest is known into `staging`; the others are not read. Blocking.

    Raises what `import_model` does, and SourceUnavailable where the source has other bytes than the manifest says.
    """
    plans = [plan for plan in plan_shards(model.config) if keep(plan.kind, plan.block)]
    total = sum(_plan_bytes(model, plan) for plan in plans)
    require_space(staging, total)
    progress = _Progress(total, report)
    written = [write_shard(staging, _shard_pieces(model, plan, progress)).id for plan in plans]
    if keep(ShardKind.TOKENIZER, None):
        written.append(write_shard(staging, [encode_tokenizer(model.tokenizer)]).id)
    for file in model.files:
        file.check_unchanged()
    if not {shard.id for shard in manifest.shards}.issuperset(written):
        raise SourceUnavailable(f"the source is no longer what {manifest.name} was made from; remove it first")


def import_gguf(path: Path, folder: Path) -> ModelManifest:
    """Import a GGUF file into a shard folder, without catalog or store. Blocking; for tests and benchmarks.

    Raises SourceUnavailable, InvalidModelFile, UnsupportedModel, and FileError when a shard cannot be written.
    """
    staging = folder / f"import-{secrets.token_hex(6)}"
    staging.mkdir(parents=True)
    try:
        with open_gguf(path) as model:
            manifest = import_model(model, staging, lambda _kind, _block: True, lambda _done, _total: None)
        for shard in {shard.id for shard in manifest.shards}:
            publish_shard(staging, folder, shard)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _plan_bytes(model: SourceModel, plan: ShardPlan) -> int:
    return sum(model.tensors[source].region.nbytes for _, source in plan.tensors)


def free_bytes(folder: Path) -> int:
    """Return how much room there is where a folder is, or is going to be. Blocking. Raises FileError."""
    try:
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    except OSError as error:
        raise FileError(f"cannot tell how much space is free in {folder}: {error.strerror}") from error


def require_space(folder: Path, nbytes: int) -> None:
    """Raise FileError unless a folder has room for `nbytes` more. Blocking."""
    free = free_bytes(folder)
    if free < nbytes + _SPARE_BYTES:
        raise FileError(
            f"the model needs {nbytes / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB free; free some, or choose "
            "another data folder"
        )


@attrs.define(eq=False)
class _Progress:
    total: int
    report: ReportBytes
    done: int = 0

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        self.report(self.done, self.total)


def _write(pieces: Iterator[bytes] | list[bytes], staging: Path, *, kept: bool) -> HashedBytes:
    return write_shard(staging, pieces) if kept else hash_pieces(pieces)


def _descriptors(model: SourceModel, plan: ShardPlan) -> tuple[TensorDescriptor, ...]:
    return tuple(attrs.evolve(model.tensors[source].descriptor, name=name) for name, source in plan.tensors)


def _shard_pieces(model: SourceModel, plan: ShardPlan, progress: _Progress) -> Iterator[bytes]:
    layout, sources = SafetensorsLayout.of(_descriptors(model, plan)), dict(plan.tensors)
    yield layout.header
    for tensor in layout.tensors:
        region = model.tensors[sources[tensor.name]].region
        if region.nbytes != tensor.nbytes:
            raise FileError(f"tensor {tensor.name!r} has {region.nbytes} bytes at its source, not {tensor.nbytes}")
        for piece in region.pieces():
            yield piece
            progress.add(len(piece))
