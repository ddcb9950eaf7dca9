"""The llama family: Llama 2 and 3, SmolLM, TinyLlama, Mistral.

Pre-norm blocks: x + attention(norm(x)), then x + mlp(norm(x)); grouped queries, rotary positions, gated feed-forward.
"""

from typing import Self

import attrs
import torch

from meshnode.engine.layers.attention import Attention
from meshnode.engine.layers.direct_attention import DirectAttention
from meshnode.engine.layers.linear import Linear, build_linear
from meshnode.engine.layers.mlp import GatedMLP
from meshnode.engine.layers.norm import RMSNorm
from meshnode.engine.layers.rotary import interleaving
from meshnode.engine.weights import StageWeights
from meshnode.types.manifest import ModelConfig

__all__ = ["LlamaBlock"]


@attrs.frozen(eq=False)
class LlamaBlock:
    """One transformer block."""

    attention_norm: RMSNorm
    qkv: Linear
    output: Linear
    mlp_norm: RMSNorm
    mlp: GatedMLP

    @classmethod
    def load(cls, weights: StageWeights, config: ModelConfig, block: int, device: torch.device) -> Self:
        """Take block `block`'s tensors and pack them."""
        prefix = f"blk.{block}."
        query_order, key_order = interleaving(config, config.head_count), interleaving(config, config.kv_head_count)
        return cls(
            attention_norm=RMSNorm.from_weight(
                weights.vector(prefix + "attn_norm.weight"), config.norm_epsilon, device
            ),
            qkv=build_linear(
                [
                    weights.matrix(prefix + "attn_q.weight", query_order),
                    weights.matrix(prefix + "attn_k.weight", key_order),
                    weights.matrix(prefix + "attn_v.weight"),
                ],
                device=device,
            ),
            output=build_linear([weights.matrix(prefix + "attn_output.weight")], device=device),
            mlp_norm=RMSNorm.from_weight(weights.vector(prefix + "ffn_norm.weight"), config.norm_epsilon, device),
            mlp=GatedMLP(
                build_linear(
                    [weights.matrix(prefix + "ffn_gate.weight"), weights.matrix(prefix + "ffn_up.weight")],
                    device=device,
                ),
                build_linear([weights.matrix(prefix + "ffn_down.weight")], device=device),
            ),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        parts = (self.attention_norm, self.qkv, self.output, self.mlp_norm, self.mlp)
        return sum(part.nbytes for part in parts)

    def forward(self, rows: torch.Tensor, attention: Attention | DirectAttention, block: int) -> torch.Tensor:
        """Advance bfloat16 [n, hidden] in place, as block `block` of its stage."""
        rows.add_(self.output(attention(self.qkv(self.attention_norm(rows)), block)))
        return rows.add_(self.mlp(self.mlp_norm(rows)))
