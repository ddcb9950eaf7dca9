"""Cuts a model's tensors into shards: tokenizer, embedding, one per block, head.

The cut is a pure function of the configuration and the tensor table, so every node derives the same shards from the same
source. Tensors nobody would load are refused by name: an ignored tensor is a silent missing feature.
"""

from collections.abc import Mapping

import attrs

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.files.tensor_shapes import ARCHITECTURES, Architecture, Shapes
from meshnode.types.blocks import BlockRange
from meshnode.types.manifest import ModelConfig, ShardKind, TensorDescriptor

__all__ = ["READABLE_TYPES", "ShardPlan", "check_tensors", "is_kept", "plan_shards"]

READABLE_TYPES = frozenset(
    {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
)
"""GGML types that the engine computes with; a test keeps this in step with it."""

_VECTOR_TYPES = frozenset({"F32", "F16", "BF16"})


@attrs.frozen
class ShardPlan:
    """One shard to write: tensor name in the shard, and name of the source tensor."""

    kind: ShardKind
    block: int | None
    tensors: tuple[tuple[str, str], ...]


def _expected(config: ModelConfig, architecture: Architecture) -> Shapes:
    expected = architecture.embedding(config) | architecture.head(config)
    if config.tied_embedding:
        expected.pop("output.weight", None)
    for block in config.blocks:
        for name, shape in architecture.block(config).items():
            expected[f"blk.{block}.{name}"] = shape
    return expected


def check_tensors(
    config: ModelConfig,
    tensors: Mapping[str, TensorDescriptor],
    architectures: Mapping[str, Architecture] = ARCHITECTURES,
) -> None:
    """Check every tensor of a model's blocks, embedding and head against its configuration.

    Raises InvalidModelFile for a missing tensor or a wrong shape, naming what was expected and what was found, and
    UnsupportedModel for a tensor that has no place or a type that cannot be computed with.
    """
    architecture = architectures.get(config.architecture)
    if architecture is None:
        raise UnsupportedModel(
            f"architecture {config.architecture!r} cannot be run; known: {', '.join(sorted(architectures))}"
        )
    if config.causal != architecture.is_causal:
        raise InvalidModelFile(f"a {config.architecture} model cannot have causal = {config.causal}")
    if config.block_count > len(tensors):  # before a table of that many blocks is made
        raise InvalidModelFile(
            f"the model says it has {config.block_count} blocks, but has only {len(tensors)} tensors"
        )
    expected = _expected(config, architecture)
    for name, tensor in tensors.items():
        if name not in expected:
            raise UnsupportedModel(
                f"tensor {name!r} has no place in the {config.architecture} architecture as it can be run here"
            )
        if tensor.shape != expected[name]:
            raise InvalidModelFile(f"tensor {name!r} should have shape {expected[name]}, but has {tensor.shape}")
        types = READABLE_TYPES if len(tensor.shape) > 1 else _VECTOR_TYPES
        if tensor.ggml_type not in types:
            raise UnsupportedModel(
                f"tensor {name!r} has GGML type {tensor.ggml_type}; known: {', '.join(sorted(types))}"
            )
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise InvalidModelFile(f"the model lacks {len(missing)} of {len(expected)} tensors, first {missing[0]!r}")


def plan_shards(
    config: ModelConfig, architectures: Mapping[str, Architecture] = ARCHITECTURES
) -> tuple[ShardPlan, ...]:
    """Return the weight shards in order: embedding, blocks, head. A tied head gets its own copy of the embedding."""
    architecture = architectures[config.architecture]
    names = sorted(architecture.block(config))
    blocks = tuple(
        ShardPlan(ShardKind.BLOCK, block, tuple((f"blk.{block}.{name}", f"blk.{block}.{name}") for name in names))
        for block in config.blocks
    )
    tied = {"output.weight": "token_embd.weight"} if config.tied_embedding else {}
    return (
        ShardPlan(ShardKind.EMBEDDING, None, tuple((name, name) for name in sorted(architecture.embedding(config)))),
        *blocks,
        ShardPlan(
            ShardKind.HEAD, None, tuple((name, tied.get(name, name)) for name in sorted(architecture.head(config)))
        ),
    )


def is_kept(kind: ShardKind, block: int | None, blocks: BlockRange | None, block_count: int) -> bool:
    """Say whether a node that holds `blocks` (None: all) of a model of `block_count` blocks keeps a shard.

    The embedding goes with the first block and the head with the last; everybody keeps the tokenizer.
    """
    if blocks is None or kind is ShardKind.TOKENIZER:
        return True
    if kind is ShardKind.BLOCK:
        return block is not None and block in blocks
    return (0 if kind is ShardKind.EMBEDDING else block_count - 1) in blocks
