"""Cuts a model's tensors into shards: tokenizer, embedding, one per block, head.

The cut is a pure function of the configuration and the tensor table, so every node derives the same shards from the same
source. Tensors nobody would load are refused by name: an ignored tensor is a silent missing feature.
"""

from collections.abc import Mapping

import attrs

from meshnode.errors import InvalidModelFile, UnsupportedModel
from meshnode.types.manifest import ModelConfig, ShardKind

__all__ = ["ShardPlan", "check_shapes", "plan_shards"]


@attrs.frozen
class ShardPlan:
    """One shard to write: tensor name in the shard, and name of the source tensor."""

    kind: ShardKind
    block: int | None
    tensors: tuple[tuple[str, str], ...]


def _block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    queries, keys = config.head_count * config.head_size, config.kv_head_count * config.head_size
    hidden, inner = config.hidden_size, config.feed_forward_size
    return {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (queries, hidden),
        "attn_k.weight": (keys, hidden),
        "attn_v.weight": (keys, hidden),
        "attn_output.weight": (hidden, queries),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }


def check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check every tensor against the configuration.

    Raises InvalidModelFile for a missing tensor or a wrong shape, UnsupportedModel for a tensor that has no place.
    """
    expected = {
        "token_embd.weight": (config.vocabulary_size, config.hidden_size),
        "output_norm.weight": (config.hidden_size,),
    }
    if not config.tied_embedding:
        expected["output.weight"] = (config.vocabulary_size, config.hidden_size)
    if "rope_freqs.weight" in shapes:
        expected["rope_freqs.weight"] = (config.rope_size // 2,)
    for block in config.blocks:
        expected |= {f"blk.{block}.{name}": shape for name, shape in _block_shapes(config).items()}
    for name, shape in shapes.items():
        if name not in expected:
            raise UnsupportedModel(
                f"tensor {name!r} has no place in the {config.architecture} architecture as it can be run here"
            )
        if shape != expected[name]:
            raise InvalidModelFile(f"tensor {name!r} has shape {shape}; the metadata says {expected[name]}")
    missing = sorted(expected.keys() - shapes.keys())
    if missing:
        raise InvalidModelFile(f"the model lacks {len(missing)} tensors, the first is {missing[0]!r}")


def plan_shards(config: ModelConfig) -> tuple[ShardPlan, ...]:
    """Return the weight shards in order: embedding, blocks, head. A tied head gets its own copy of the embedding."""
    blocks = tuple(
        ShardPlan(
            ShardKind.BLOCK,
            block,
            tuple((f"blk.{block}.{name}", f"blk.{block}.{name}") for name in sorted(_block_shapes(config))),
        )
        for block in config.blocks
    )
    output = "token_embd.weight" if config.tied_embedding else "output.weight"
    return (
        ShardPlan(ShardKind.EMBEDDING, None, (("token_embd.weight", "token_embd.weight"),)),
        *blocks,
        ShardPlan(ShardKind.HEAD, None, (("output.weight", output), ("output_norm.weight", "output_norm.weight"))),
    )
