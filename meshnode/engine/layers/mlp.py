"""The gated feed-forward sublayer: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

import attrs
import torch

from meshnode.engine.avx2 import are_preferred, check, kernels
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
        return self.down(_gated(self.gate_up(rows)))


def _gated(rows: torch.Tensor) -> torch.Tensor:
    """Map a gate and an up projection, side by side in bfloat16 [n, 2 * inner], to silu(gate) * up, [n, inner]."""
    n, columns = len(rows), rows.shape[1] // 2
    if rows.is_cuda or columns % 8 or not are_preferred():
        gate, up = rows.chunk(2, 1)
        return torch.nn.functional.silu(gate).mul_(up)
    rows, out = check(rows, torch.bfloat16, 2 * columns), rows.new_empty(n, columns)
    kernels.gate(rows.data_ptr(), out.data_ptr(), n, columns, torch.get_num_threads())
    return out
