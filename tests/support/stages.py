"""Builds stage specs of imported models."""

from pathlib import Path

from meshnode.engine.executor import StageSpec
from meshnode.files.importing import import_gguf, import_model
from meshnode.files.safetensors_folder import open_folder
from meshnode.files.shard_file import publish_shard, shard_path
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ModelManifest

__all__ = ["ends_of", "imported", "stage_of", "tiny_manifest"]


def stage_of(
    manifest: ModelManifest,
    folder: Path,
    start: int = 0,
    end: int | None = None,
    *,
    context: int = 0,
    cache: int = 1 << 30,
) -> StageSpec:
    """Describe blocks [start, end) of a model whose shards lie in `folder`, with the ends of the model where they touch."""
    blocks = BlockRange(start, end or manifest.config.block_count)
    embedding, head = blocks.start == 0, blocks.end == manifest.config.block_count
    return _spec(manifest, folder, blocks, embedding, head, context, cache)


def ends_of(manifest: ModelManifest, folder: Path, *, embedding: bool = True, head: bool = True) -> StageSpec:
    """Describe a stage without blocks."""
    return _spec(manifest, folder, None, embedding, head, 0, 1 << 20)


def _spec(
    manifest: ModelManifest,
    folder: Path,
    blocks: BlockRange | None,
    embedding: bool,
    head: bool,
    context: int,
    cache: int,
) -> StageSpec:
    config = manifest.config
    shards = manifest.shards_for(blocks, embedding=embedding, head=head)
    return StageSpec(
        model=manifest.id,
        config=config,
        blocks=blocks,
        embedding=embedding,
        head=head,
        shards=shards,
        paths=tuple(str(shard_path(folder, shard.id)) for shard in shards),
        device="cpu",
        threads=1,
        context_length=context or config.context_length,
        cache_bytes=cache,
        tokenizer=str(shard_path(folder, manifest.shards[0].id)) if head else "",
    )


def tiny_manifest(path: Path, folder: Path) -> ModelManifest:
    """Import a GGUF file."""
    return import_gguf(path, folder)


def imported(source: Path, folder: Path) -> ModelManifest:
    """Import a Hugging Face folder."""
    staging = folder / "staging"
    staging.mkdir(parents=True)
    with open_folder(source) as model:
        manifest = import_model(model, staging, lambda _kind, _block: True, lambda _done, _total: None)
    for shard in {shard.id for shard in manifest.shards}:
        publish_shard(staging, folder, shard)
    return manifest
