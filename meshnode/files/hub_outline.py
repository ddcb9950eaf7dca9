"""What the headers of a model on a hub say: everything but its weights."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs

from meshnode.errors import SourceUnavailable
from meshnode.files.hub_choice import HubFile
from meshnode.files.hub_client import HubRepository
from meshnode.files.hub_shares import HubShare, SharedShard, SharedTensor
from meshnode.files.layout import ShardPlan, plan_shards
from meshnode.files.manifests import build_manifest
from meshnode.files.shard_file import HashedBytes
from meshnode.files.sources import SourceModel
from meshnode.files.tokenizer_shard import encode_tokenizer
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ModelConfig, ModelManifest, ShardDescriptor, ShardKind

__all__ = ["Outline", "outline_of"]


@attrs.frozen
class Outline:
    """A model whose weights are still on the hub."""

    name: str
    config: ModelConfig
    license: str | None
    origin: str | None
    aliases: tuple[str, ...]
    tokenizer: bytes  # its shard
    whole: HubShare  # all weights, in the order of a manifest

    def share(self, *kinds: ShardKind, blocks: BlockRange, besides: Collection[SharedShard] = ()) -> HubShare | None:
        """Return the part of these kinds, and these blocks, without what is in `besides`; None if nothing is left."""
        shards = tuple(
            each
            for each in self.whole.shards
            if (each.kind in kinds or (each.block is not None and each.block in blocks)) and each not in besides
        )
        return attrs.evolve(self.whole, shards=shards) if shards else None

    def described(self, manifest: ModelManifest) -> dict[SharedShard, HashedBytes]:
        """Return what a manifest says that the shards hash to. Raises SourceUnavailable for the manifest of another model."""
        said = {(each.kind, each.block): each for each in manifest.shards}
        found = {shard: said.get((shard.kind, shard.block)) for shard in self.whole.shards}
        if manifest.config != self.config or any(
            each is None or each.tensors != shard.descriptors for shard, each in found.items()
        ):
            raise SourceUnavailable(f"the source is no longer what {manifest.name} was made from; remove it first")
        return {shard: HashedBytes(each.id, each.chunks, each.nbytes) for shard, each in found.items() if each}

    def manifest(self, tokenizer: HashedBytes, made: Mapping[SharedShard, HashedBytes]) -> ModelManifest:
        """Return the manifest, once it is known what every shard hashes to."""
        shards = [ShardDescriptor(tokenizer.id, ShardKind.TOKENIZER, None, tokenizer.nbytes, tokenizer.chunks, ())]
        for shard in self.whole.shards:
            hashed = made[shard]
            shards.append(
                ShardDescriptor(hashed.id, shard.kind, shard.block, hashed.nbytes, hashed.chunks, shard.descriptors)
            )
        return build_manifest(self.name, self.config, tuple(shards), license_name=self.license, source=self.origin)


def outline_of(
    model: SourceModel,
    repository: HubRepository,
    files: Sequence[HubFile],
    places: Mapping[Path, int],
) -> Outline:
    """Return the outline of an opened model; `places` says which file is meant by a path."""
    shards = tuple(_shard(model, plan, places) for plan in plan_shards(model.config))
    return Outline(
        model.name,
        model.config,
        model.license,
        model.origin,
        model.aliases,
        encode_tokenizer(model.tokenizer),
        HubShare(repository.name, repository.commit, tuple(files), shards),
    )


def _shard(model: SourceModel, plan: ShardPlan, places: Mapping[Path, int]) -> SharedShard:
    tensors = []
    for name, source in plan.tensors:
        found = model.tensors[source]
        tensor, region = found.descriptor, found.region
        place = places[region.file.path]
        tensors.append(SharedTensor(name, tensor.ggml_type, tensor.shape, tensor.nbytes, place, region.offset))
    return SharedShard(plan.kind, plan.block, tuple(tensors))
