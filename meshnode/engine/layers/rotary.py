"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as a complex product.

Dimensions (2i, 2i + 1) of a head are the complex number that is turned by position * frequency i. Checkpoints that pair
(i, i + d/2) instead have the rows of their q and k projections reordered at load (`interleaving`), which changes no
score, so that there is one kernel.
"""

from collections.abc import Sequence

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
    """The rotation of every position up to the context's end; its length carries the attention scale.

    Queries and keys are both multiplied by it, so each takes the square root of the scale, head_size ** -0.5.
    """

    table: torch.Tensor  # complex64 [context, 1, head_size / 2]; pairs past rope_size are not turned

    @classmethod
    def from_config(cls, config: ModelConfig, context_length: int, device: torch.device) -> "Rotary":
        """Compute the table in float64: angle = position / rope_scale / (rope_factor_i * base ** (2i / rope_size))."""
        pairs = torch.arange(0, config.rope_size, 2, dtype=torch.float64)
        frequencies = config.rope_base ** (-pairs / config.rope_size) / config.rope_scale
        if config.rope_factors is not None:
            frequencies = frequencies / torch.tensor(config.rope_factors, dtype=torch.float64)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float64), frequencies)
        angles = torch.nn.functional.pad(angles, (0, (config.head_size - config.rope_size) // 2))
        table = torch.polar(torch.full_like(angles, config.head_size**-0.25), angles).to(torch.complex64)
        return cls(table.unsqueeze(1).to(device))

    def rotations(self, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return complex64 [n, 1, head_size / 2] for spans of (position, count): what queries and keys are multiplied by."""
        pieces = [self.table[position : position + count] for position, count in spans]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
