"""BERT encoders (Devlin et al. 2018, arXiv:1810.04805): MiniLM, BGE, E5 and their like.

Post-norm blocks in which every position attends to all others: norm(x + attention(x)), then norm(x + mlp(x)) with GELU.
Everything is computed in float32 from plain weights: these models are small, and vectors are compared, so precision is cheap
and matters.
"""

from typing import Self

import attrs
import torch
from torch.nn import functional

from meshnode.engine.weights import StageWeights
from meshnode.types.manifest import ModelConfig

__all__ = ["BertBlock", "BertEmbedding"]


@attrs.frozen(eq=False)
class _Affine:
    """Multiplies float32 [n, columns] to [n, rows] and adds a bias."""

    weight: torch.Tensor  # float32 [rows, columns]
    bias: torch.Tensor  # float32 [rows]

    @classmethod
    def load(cls, weights: StageWeights, names: list[str], device: torch.device) -> Self:
        """Take matrices with their biases and stack them by rows."""
        matrices = [weights.matrix(f"{name}.weight") for name in names]
        weight = torch.cat([matrix.values(0, matrix.rows) for matrix in matrices])
        bias = torch.cat([weights.vector(f"{name}.bias") for name in names])
        return cls(weight.to(device), bias.to(device))

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, self.weight, self.bias)


@attrs.frozen(eq=False)
class _LayerNorm:
    weight: torch.Tensor  # float32 [hidden]
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def load(cls, weights: StageWeights, name: str, epsilon: float, device: torch.device) -> Self:
        vectors = [weights.vector(f"{name}.{part}").to(device) for part in ("weight", "bias")]
        return cls(vectors[0], vectors[1], epsilon)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@attrs.frozen(eq=False)
class BertEmbedding:
    """Word, position and segment (always the first) added and normalised."""

    words: torch.Tensor  # float32 [vocabulary, hidden]
    positions: torch.Tensor  # float32 [context, hidden], the segment's row added to each
    norm: _LayerNorm

    @classmethod
    def load(cls, weights: StageWeights, config: ModelConfig, device: torch.device) -> Self:
        """Take the embedding's tensors."""
        words, positions, segments = (
            weights.matrix(name) for name in ("token_embd.weight", "position_embd.weight", "token_types.weight")
        )
        placed = positions.values(0, positions.rows) + segments.values(0, 1)
        norm = _LayerNorm.load(weights, "token_embd_norm", config.norm_epsilon, device)
        return cls(words.values(0, words.rows).to(device), placed.to(device), norm)

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self.words.nbytes + self.positions.nbytes + self.norm.nbytes

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, hidden] for int64 [n] tokens, the text's from its first on."""
        return self.norm(self.words[tokens.to(self.words.device)] + self.positions[: len(tokens)])


@attrs.frozen(eq=False)
class BertBlock:
    """One transformer block."""

    qkv: _Affine
    output: _Affine
    attention_norm: _LayerNorm
    up: _Affine
    down: _Affine
    mlp_norm: _LayerNorm
    heads: int

    @classmethod
    def load(cls, weights: StageWeights, config: ModelConfig, block: int, device: torch.device) -> Self:
        """Take block `block`'s tensors."""
        prefix = f"blk.{block}."
        return cls(
            qkv=_Affine.load(weights, [f"{prefix}attn_{each}" for each in "qkv"], device),
            output=_Affine.load(weights, [prefix + "attn_output"], device),
            attention_norm=_LayerNorm.load(weights, prefix + "attn_output_norm", config.norm_epsilon, device),
            up=_Affine.load(weights, [prefix + "ffn_up"], device),
            down=_Affine.load(weights, [prefix + "ffn_down"], device),
            mlp_norm=_LayerNorm.load(weights, prefix + "layer_output_norm", config.norm_epsilon, device),
            heads=config.head_count,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        parts = (self.qkv, self.output, self.attention_norm, self.up, self.down, self.mlp_norm)
        return sum(part.nbytes for part in parts)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, hidden] for those of a whole text."""
        queries, keys, values = self.qkv(rows).view(len(rows), 3, self.heads, -1).permute(1, 2, 0, 3)
        attended = functional.scaled_dot_product_attention(queries, keys, values)
        rows = self.attention_norm(rows + self.output(attended.transpose(0, 1).reshape(rows.shape)))
        return self.mlp_norm(rows + self.down(functional.gelu(self.up(rows))))
