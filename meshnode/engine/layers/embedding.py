"""Token embedding: rows are decoded when they are looked up, so the table stays as it lies on disk, memory-mapped."""

import attrs
import torch

from meshnode.engine.layers.matrix import RawMatrix
from meshnode.engine.quantization.ggml import dequantize_rows

__all__ = ["Embedding"]


@attrs.frozen(eq=False)
class Embedding:
    """Looks up int64 [n] token ids; gives bfloat16 [n, hidden] on `device`."""

    matrix: RawMatrix
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes of the table; they are file pages that the system may drop, not memory we hold."""
        return self.matrix.data.nbytes

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of `tokens`."""
        rows = dequantize_rows(self.matrix.data.index_select(0, tokens), self.matrix.ggml_type)
        return rows.to(self.device, torch.bfloat16)
