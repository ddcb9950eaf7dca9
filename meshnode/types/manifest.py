"""What a model is made of: hyper-parameters, shards, and the tensors inside them.

A manifest names one exact set of weights. Shards are ordered: tokenizer, embedding, blocks 0…N-1, head.
Tensor names are GGUF's (`blk.3.attn_q.weight`, `token_embd.weight`, `output_norm.weight`, `output.weight`),
whatever the source was. A head shard always has `output.weight`; for tied models it is a copy of `token_embd.weight`.
"""

import enum
import math

import attrs

from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, ShardId

__all__ = [
    "CHUNK_BYTES",
    "ModelConfig",
    "ModelManifest",
    "RopeStyle",
    "ShardDescriptor",
    "ShardKind",
    "TensorDescriptor",
]

CHUNK_BYTES = 1 << 20
"""Size of the verified chunk of a shard in transfer, in bytes; the last chunk may be shorter."""


class RopeStyle(enum.Enum):
    """Which pairs of a head's dimensions are rotated together."""

    INTERLEAVED = "interleaved"  # (0, 1), (2, 3), …: GGUF files of the llama family
    HALVES = "halves"  # (0, d/2), (1, d/2 + 1), …: Hugging Face checkpoints


@attrs.frozen
class ModelConfig:
    """Architecture hyper-parameters; all counts are exact, all lengths in tokens or elements."""

    architecture: str  # the name in the engine's registry, for example "llama"
    block_count: int
    hidden_size: int
    feed_forward_size: int
    head_count: int
    kv_head_count: int
    head_size: int
    vocabulary_size: int
    context_length: int
    norm_epsilon: float
    rope_base: float
    rope_size: int  # rotated dimensions per head, <= head_size
    rope_style: RopeStyle
    rope_scale: float = 1.0  # positions are divided by this (linear scaling); 1.0 is off
    rope_factors: tuple[float, ...] | None = None  # rope_size / 2 divisors of the base frequencies (Llama 3)
    sliding_window: int | None = None  # tokens each position may look back, None is all
    tied_embedding: bool = False
    causal: bool = True  # False: every position attends to all others, and the model makes vectors but no text
    pooling: str = ""  # how it makes a vector of a text, one of POOLINGS; "" is its mean

    @property
    def blocks(self) -> BlockRange:
        """All blocks of the model."""
        return BlockRange(0, self.block_count)


class ShardKind(enum.Enum):
    """What a shard holds."""

    TOKENIZER = "tokenizer"  # msgpack of the vocabulary and the chat template, no tensors
    EMBEDDING = "embedding"
    BLOCK = "block"
    HEAD = "head"  # final norm and output projection


@attrs.frozen
class TensorDescriptor:
    """One tensor: GGML type name, shape with the outermost dimension first, and its size in bytes."""

    name: str
    ggml_type: str  # GGML's name: F32, F16, BF16, Q4_0, Q4_K, …
    shape: tuple[int, ...]  # (rows, columns) for a matrix: rows are outputs, columns are inputs
    nbytes: int


@attrs.frozen
class ShardDescriptor:
    """One content-addressed file; `id` is the BLAKE3 of all of its bytes."""

    id: ShardId
    kind: ShardKind
    block: int | None  # the block index for ShardKind.BLOCK, otherwise None
    nbytes: int
    chunks: tuple[str, ...]  # BLAKE3 of every CHUNK_BYTES, hex
    tensors: tuple[TensorDescriptor, ...]


@attrs.frozen
class ModelManifest:
    """A model's identity and its ordered shards."""

    id: ModelId  # BLAKE3 of the canonical bytes of config and shards
    name: str  # what users type; unique within one catalog, not in the world
    config: ModelConfig
    shards: tuple[ShardDescriptor, ...]
    quantization: str  # the most common GGML type among block matrices, for people
    license: str | None = None
    source: str | None = None  # where it came from, for people
    source_version: str | None = None  # which version of a hub's files, for who looks for the same

    @property
    def repository(self) -> str:
        """The repository of a hub that it came from; empty if from none: what a person's files are called is their business."""
        repository, at, _ = (self.source or "").partition("@")
        return repository if at and repository.count("/") == 1 else ""

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def parameters(self) -> int:
        """Weights of the model; what an output projection shares with the embedding counts once."""
        tied = ShardKind.HEAD if self.config.tied_embedding else None
        return sum(
            math.prod(tensor.shape)
            for shard in self.shards
            for tensor in shard.tensors
            if not (shard.kind is tied and tensor.name == "output.weight")
        )

    def shards_for(self, blocks: BlockRange | None, *, embedding: bool, head: bool) -> tuple[ShardDescriptor, ...]:
        """Return the weight shards of a stage, in order (the tokenizer is not part of a stage); None is no block."""
        return tuple(
            shard
            for shard in self.shards
            if (shard.kind is ShardKind.EMBEDDING and embedding)
            or (shard.kind is ShardKind.HEAD and head)
            or (shard.block is not None and blocks is not None and shard.block in blocks)
        )
