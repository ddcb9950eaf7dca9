"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as a complex product.

Dimensions (2i, 2i + 1) of a head are the complex number that is turned by position * frequency i. Checkpoints that pair
(i, i + d/2) instead have the rows of their q and k projections reordered at load (`interleaving`), which changes no
score, so that there is one kernel.
"""

import attrs
import torch

from meshnode.types.manifest import ModelConfig, RopeStyle

__all__ = ["Rotary", "interleaving"]


def interleaving(config: ModelConfig, heads: int) -> torch.Tensor | None:
    """Return the row order that turns a HALVES projection of `heads` heads into an INTERLEAVED one, else None."""
    if config.rope_style is RopeStyle.INTERLEAVED:
        return None
    half = config.rope_size // 2
    turned = torch.stack([torch.arange(half), torch.arange(half) + half], dim=-1).flatten()
    head = torch.cat([turned, torch.arange(config.rope_size, config.head_size)])
    return (torch.arange(heads)[:, None] * config.head_size + head).flatten()


@attrs.frozen(eq=False)
class Rotary:
    """The rotations of every position up to the context's end, and the attention scale folded into the queries."""

    table: torch.Tensor  # complex64 [context, head_size / 2]; pairs past rope_size are not turned
    query_heads: int
    key_heads: int
    query_scale: float

    @classmethod
    def from_config(cls, config: ModelConfig, context_length: int, device: torch.device) -> "Rotary":
        """Compute the table in float64: angle = position / rope_scale / (rope_factor_i * base ** (2i / rope_size))."""
        pairs = torch.arange(0, config.rope_size, 2, dtype=torch.float64)
        frequencies = config.rope_base ** (-pairs / config.rope_size) / config.rope_scale
        if config.rope_factors is not None:
            frequencies = frequencies / torch.tensor(config.rope_factors, dtype=torch.float64)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float64), frequencies)
        angles = torch.nn.functional.pad(angles, (0, (config.head_size - config.rope_size) // 2))
        table = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        return cls(table.to(device), config.head_count, config.kv_head_count, config.head_size**-0.5)

    def rotations(self, positions: torch.Tensor) -> torch.Tensor:
        """Return complex64 [n, query_heads + 2 * key_heads, head_size / 2] for int64 [n] positions.

        It is made once per step and used by every block: queries are turned and scaled, keys turned, values kept.
        """
        turn = self.table[positions].unsqueeze(1)
        n, _, pairs = turn.shape
        return torch.cat(
            [
                (turn * self.query_scale).expand(n, self.query_heads, pairs),
                turn.expand(n, self.key_heads, pairs),
                torch.ones(n, self.key_heads, pairs, dtype=turn.dtype, device=turn.device),
            ],
            dim=1,
        )

    @staticmethod
    def apply(fused: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
        """Turn a fused projection, bfloat16 [n, heads * head_size], into float32 [n, heads, head_size]."""
        n, heads, pairs = rotations.shape
        turned = fused.float().view(torch.complex64).view(n, heads, pairs).mul_(rotations)
        return turned.view(torch.float32)
