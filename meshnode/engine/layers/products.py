"""In which type, and in how many rows at a time, products of activations are taken on a device.

bfloat16 where there are kernels for it: CUDA, and CPUs with AVX-512, through oneDNN. Elsewhere torch multiplies bfloat16
number by number: on an AVX2 core 384 queries against a page of keys took 128 ms in bfloat16 and 9 ms in float32. MKL's float32
products gave bit-identical rows for every multiple of four rows up to 1024, on one and two threads, whatever went with them;
for one to three rows it has other kernels, so rows are filled up with zeros.
"""

from functools import cache
from typing import Self

import attrs
import torch

__all__ = ["Products"]


@attrs.frozen
class Products:
    """How to multiply so that a row's bits do not depend on its neighbours."""

    dtype: torch.dtype
    rows: int  # in multiples of this

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """Return the products of a device."""
        return cls(torch.bfloat16, 1) if device.type != "cpu" or _cpu_has_bfloat16() else cls(torch.float32, 4)

    def filled_up(self, rows: int) -> int:
        """Return how many rows go into a product in which `rows` are wanted."""
        return -(-rows // self.rows) * self.rows

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a bfloat16 tensor as the product takes it, strides kept; a copy only where that is another type."""
        return tensor.to(self.dtype)


@cache
def _cpu_has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
