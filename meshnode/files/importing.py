"""Turns an opened source into shards and a manifest. Everything that can refuse has done so before a byte is written."""

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from meshnode.errors import FileError
from meshnode.files.layout import ShardPlan, plan_shards
from meshnode.files.local_gguf import open_gguf
from meshnode.files.manifests import build_manifest
from meshnode.files.shard_file import HashedBytes, SafetensorsLayout, hash_pieces, publish_shard, write_shard
from meshnode.files.sources import ReportBytes, SourceModel
from meshnode.files.tokenizer_shard import encode_tokenizer
from meshnode.types.manifest import ModelManifest, ShardDescriptor, ShardKind

__all__ = ["KeepShard", "import_gguf", "import_model"]

KeepShard = Callable[[ShardKind, int | None], bool]
"""Says by kind and block whether a shard is to be written, or only hashed for the manifest."""

_SPARE_BYTES = 64 << 20  # for shard headers, the tokenizer, the store


def import_model(model: SourceModel, staging: Path, keep: KeepShard, report: ReportBytes) -> ModelManifest:
    """Write the shards to keep into `staging` and return the manifest of all. Blocking; `report` may end it by raising.

    Raises InvalidModelFile when a source file ends too early or changes meanwhile, FileError when a shard cannot be written.
    """
    plans = plan_shards(model.config)
    _require_space(staging, sum(_plan_bytes(model, plan) for plan in plans if keep(plan.kind, plan.block)))
    progress = _Progress(sum(_plan_bytes(model, plan) for plan in plans), report)
    hashed = _write([encode_tokenizer(model.tokenizer)], staging, kept=keep(ShardKind.TOKENIZER, None))
    shards = [ShardDescriptor(hashed.id, ShardKind.TOKENIZER, None, hashed.nbytes, hashed.chunks, ())]
    for plan in plans:
        sources = dict(plan.tensors)
        tensors = tuple(attrs.evolve(model.tensors[sources[name]].descriptor, name=name) for name in sources)
        pieces = _pieces(model, SafetensorsLayout.of(tensors), sources, progress)
        hashed = _write(pieces, staging, kept=keep(plan.kind, plan.block))
        shards.append(ShardDescriptor(hashed.id, plan.kind, plan.block, hashed.nbytes, hashed.chunks, tensors))
    for file in model.files:
        file.check_unchanged()
    return build_manifest(model.name, model.config, tuple(shards), license_name=model.license, source=model.origin)


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


def _require_space(folder: Path, nbytes: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise FileError(f"cannot tell how much space is free in {folder}: {error.strerror}") from error
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


def _pieces(
    model: SourceModel, layout: SafetensorsLayout, sources: dict[str, str], progress: _Progress
) -> Iterator[bytes]:
    yield layout.header
    for tensor in layout.tensors:
        region = model.tensors[sources[tensor.name]].region
        if region.nbytes != tensor.nbytes:
            raise FileError(f"tensor {tensor.name!r} has {region.nbytes} bytes at its source, not {tensor.nbytes}")
        for piece in region.pieces():
            yield piece
            progress.add(len(piece))
