"""The gated feed-forward sublayer: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

import attrs
import torch

from meshnode.engine.layers.linear import Linear

__all__ = ["GatedMLP"]


@attrs.frozen(eq=False)
class GatedMLP:
    """Gate and up are one stacked projection."""

    gate_up: Linear
    down: Linear

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self.gate_up.nbytes + self.down.nbytes

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Map bfloat16 [n, hidden] to bfloat16 [n, hidden]."""
        gate, up = self.gate_up(rows).chunk(2, 1)
        return self.down(torch.nn.functional.silu(gate).mul_(up))
