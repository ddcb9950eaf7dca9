"""Projections with bfloat16 weights: plain types, shapes no packed kernel takes, and every matrix on CUDA.

oneDNN's bfloat16 matmul behind `bmm` gave bit-identical rows for 1 to 1536 rows on one and two threads; `F.linear` did not,
since it switches kernels for a single row. A CPU without bfloat16 products multiplies in float32 (`engine.layers.products`);
its weights are widened a tile at a time, since twice the memory would cost a model its place.
"""

from typing import Self

import attrs
import torch

from meshnode.engine.layers.matrix import RawMatrix
from meshnode.engine.layers.products import Products

__all__ = ["DenseLinear"]

_TILE = 256  # rows of weights that are widened at once: 2 MB of 2048 columns, which stay in the processor's cache


@attrs.frozen(eq=False)
class DenseLinear:
    """Multiplies bfloat16 [n, columns] to [n, rows]."""

    weight: torch.Tensor  # bfloat16 [1, columns, rows], a transposed view
    products: Products

    @classmethod
    def pack(cls, matrices: tuple[RawMatrix, ...], device: torch.device) -> Self:
        """Stack matrices of the same width by rows."""
        weight = torch.empty(sum(m.rows for m in matrices), matrices[0].columns, dtype=torch.bfloat16, device=device)
        filled = 0
        for matrix in matrices:
            for start, end in matrix.spans():
                weight[filled : filled + end - start] = matrix.values(start, end)
                filled += end - start
        return cls(weight.t().unsqueeze(0), Products.on(device))

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self.weight.nbytes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return bfloat16 [n, rows]."""
        return self._product(inputs).bfloat16()

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, rows]."""
        return self._product(inputs).float()

    def _product(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [n, rows] in the type of the products."""
        if self.products.dtype is torch.bfloat16:
            return torch.bmm(inputs.unsqueeze(0), self.weight).squeeze(0)
        n, columns = inputs.shape
        rows = inputs.new_zeros(self.products.filled_up(n), columns, dtype=self.products.dtype)
        rows[:n] = inputs
        tiles = self.weight[0].split(_TILE, 1)
        return torch.cat([torch.mm(rows, self.products.operand(tile)) for tile in tiles], 1)[:n]
