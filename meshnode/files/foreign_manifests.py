"""Manifests that come from peers: true if they hash to the id that was asked for, and sound if they say what a model must."""

import attrs
import msgspec

from meshnode.errors import InvalidModelFile
from meshnode.files.layout import check_tensors, plan_shards
from meshnode.files.manifests import manifest_id, name_from_title
from meshnode.files.shard_file import SafetensorsLayout, is_shard_id
from meshnode.types.ids import ModelId
from meshnode.types.manifest import CHUNK_BYTES, ModelManifest, ShardDescriptor, ShardKind

__all__ = ["decode_manifest", "encode_manifest", "manifest_id_of"]

_MAX_SHARD = 1 << 40  # bytes
_MAX_TOKENIZER = 1 << 30


def encode_manifest(manifest: ModelManifest) -> bytes:
    """Return a manifest as it travels."""
    return msgspec.msgpack.encode(manifest)


def decode_manifest(data: bytes, model: ModelId) -> ModelManifest:
    """Return the manifest of `model`. Blocking for large ones.

    Its name is made safe, since no hash covers it. Raises InvalidModelFile for another model's or a contradictory one, and
    UnsupportedModel for one that cannot be run here.
    """
    manifest = _decoded(data)
    if manifest.id != model or manifest_id(manifest.config, manifest.shards) != model:
        raise InvalidModelFile("the manifest is of another model than the one that was asked for")
    _check_shards(manifest)
    return attrs.evolve(manifest, name=name_from_title(manifest.name))


def manifest_id_of(data: bytes) -> ModelId:
    """Return the id that a manifest says it has. Raises InvalidModelFile."""
    return _decoded(data).id


def _decoded(data: bytes) -> ModelManifest:
    try:
        return msgspec.msgpack.decode(data, type=ModelManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidModelFile(f"the manifest is malformed: {error}") from error


def _check_shards(manifest: ModelManifest) -> None:
    config = manifest.config
    tensors = {tensor.name: tensor for shard in manifest.shards for tensor in shard.tensors}
    if config.tied_embedding:
        tensors.pop("output.weight", None)  # a copy of the embedding
    check_tensors(config, tensors)
    plans = plan_shards(config)
    if len(manifest.shards) != len(plans) + 1 or manifest.shards[0].kind is not ShardKind.TOKENIZER:
        raise InvalidModelFile("the manifest does not have the shards of its model")
    _check_sizes(manifest.shards[0], min(_MAX_TOKENIZER, manifest.shards[0].nbytes))
    for shard, plan in zip(manifest.shards[1:], plans, strict=True):
        names = tuple(sorted(tensor.name for tensor in shard.tensors))
        if (shard.kind, shard.block, names) != (plan.kind, plan.block, tuple(sorted(name for name, _ in plan.tensors))):
            raise InvalidModelFile("the manifest does not have the shards of its model")
        _check_sizes(
            shard, len(SafetensorsLayout.of(shard.tensors).header) + sum(each.nbytes for each in shard.tensors)
        )


def _check_sizes(shard: ShardDescriptor, nbytes: int) -> None:
    chunks = -(-shard.nbytes // CHUNK_BYTES)
    if not (0 < shard.nbytes == nbytes <= _MAX_SHARD and len(shard.chunks) == chunks and is_shard_id(shard.id)):
        raise InvalidModelFile(f"the manifest contradicts itself about its {shard.kind.value} shard")
