"""How much memory a part of a model takes once it is loaded: the one estimate that loading, placement and refusals share.

Quantised weights are repacked on a CPU to 4 or 8 bits with a scale and a minimum per 32 columns, so a file of 2-bit weights
grows; on a GPU they are held in 16 bits. The numbers were compared with what the engine takes, to within a few per cent.
"""

import math
from collections.abc import Iterable

from meshnode.types.manifest import ShardDescriptor, ShardKind, TensorDescriptor

__all__ = ["loading_bytes", "resident_bytes", "scratch_bytes"]

_FOUR_BITS = frozenset({"Q4_0", "Q4_1", "Q4_K"})
_PLAIN = frozenset({"F32", "F16", "BF16"})
_FOUR_BIT_SCRATCH = 8 * 4096
"""Bytes per column while a 4-bit matrix is packed: 4096 rows at a time, twice as int32 (`engine.layers`)."""
_EIGHT_BIT_SCRATCH = 12
"""Bytes per value while an 8-bit matrix is packed, which is done whole (measured: 340 MB for a head of 49152 x 576)."""


def resident_bytes(shards: Iterable[ShardDescriptor], *, causal: bool, on_gpu: bool) -> int:
    """Return the bytes that the weights of these shards hold when they are loaded; the embedding stays in its file.

    `causal` is false for an encoder, whose weights are plain float32 and whose embedding is in memory too.
    """
    if not causal:
        return 4 * sum(math.prod(tensor.shape) for shard in shards for tensor in shard.tensors)
    return sum(_in_memory(tensor, packed=not on_gpu) for tensor in _tensors(shards))


def loading_bytes(shards: Iterable[ShardDescriptor], *, causal: bool, on_gpu: bool) -> int:
    """Return the most bytes that are held while these shards are loaded: `resident_bytes`, and the scratch of packing."""
    shards = tuple(shards)
    held = resident_bytes(shards, causal=causal, on_gpu=on_gpu)
    if on_gpu or not causal:
        return held
    return held + max((scratch_bytes(tensor) for tensor in _tensors(shards)), default=0)


def scratch_bytes(tensor: TensorDescriptor) -> int:
    """Return what is held besides while one tensor is packed for a CPU."""
    if len(tensor.shape) == 1 or tensor.ggml_type in _PLAIN:
        return 0
    if tensor.ggml_type in _FOUR_BITS:
        return _FOUR_BIT_SCRATCH * tensor.shape[-1]
    return _EIGHT_BIT_SCRATCH * math.prod(tensor.shape)


def _tensors(shards: Iterable[ShardDescriptor]) -> Iterable[TensorDescriptor]:
    return (tensor for shard in shards if shard.kind is not ShardKind.EMBEDDING for tensor in shard.tensors)


def _in_memory(tensor: TensorDescriptor, *, packed: bool) -> int:
    if len(tensor.shape) == 1:
        return 16 * tensor.shape[0]  # a norm mirrors its weights and adds a shift as wide
    rows, columns = tensor.shape[-2:]
    values = math.prod(tensor.shape)
    if not packed or tensor.ggml_type in _PLAIN or columns % 32 or rows % 16:
        return 2 * values
    return values * 5 // 8 if tensor.ggml_type in _FOUR_BITS else values * 5 // 4
