"""Projections with bfloat16 weights: plain types, shapes no packed kernel takes, and every matrix on CUDA.

oneDNN's bfloat16 matmul behind `bmm` gave bit-identical rows for 1 to 1536 rows on one and two threads; `F.linear` did not,
since it switches kernels for a single row.
"""

from typing import Self

import attrs
import torch

from meshnode.engine.layers.matrix import RawMatrix

__all__ = ["DenseLinear"]


@attrs.frozen(eq=False)
class DenseLinear:
    """Multiplies bfloat16 [n, columns] to [n, rows]."""

    weight: torch.Tensor  # bfloat16 [1, columns, rows], a transposed view

    @classmethod
    def pack(cls, matrices: tuple[RawMatrix, ...], device: torch.device) -> Self:
        """Stack matrices of the same width by rows."""
        weight = torch.empty(sum(m.rows for m in matrices), matrices[0].columns, dtype=torch.bfloat16, device=device)
        filled = 0
        for matrix in matrices:
            for start, end in matrix.spans():
                weight[filled : filled + end - start] = matrix.values(start, end)
                filled += end - start
        return cls(weight.t().unsqueeze(0))

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self.weight.nbytes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return bfloat16 [n, rows]."""
        return torch.bmm(inputs.unsqueeze(0), self.weight).squeeze(0)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, rows]."""
        return self(inputs).float()
