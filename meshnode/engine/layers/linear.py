"""Chooses the kernel of a projection.

| codes | CPU with VNNI | with AVX2 | with AVX2, no compiler | other CPU | CUDA |
|---|---|---|---|---|---|
| 4 bits (Q4_0, Q4_1, Q4_K) | int4 | our own, 15 bits | int4 | int4 | bfloat16 |
| 8 bits (Q5_*, Q8_0, Q2_K, Q3_K, Q5_K, Q6_K) | int8, 16 bits | our own, 15 bits | int8, 14 bits | int4, two halves | bfloat16 |
| plain, or a shape the kernels refuse | bfloat16 | float32 | float32 | float32 | bfloat16 |

All of them are row-invariant, which rules out faster choices that are not (`docs/decisions`). Which kernels a stage uses is
part of its drift class.
"""

import itertools
from collections.abc import Iterable
from typing import Protocol

import attrs
import torch

from meshnode.engine.avx2 import are_preferred
from meshnode.engine.layers.byte_products import byte_product
from meshnode.engine.layers.dense_linear import DenseLinear
from meshnode.engine.layers.digit_linear import DigitLinear
from meshnode.engine.layers.int4_linear import Int4Linear
from meshnode.engine.layers.int8_linear import Int8Linear
from meshnode.engine.layers.matrix import RawMatrix

__all__ = ["Linear", "SideBySide", "build_linear"]


class Linear(Protocol):
    """A projection of rows, bias-free."""

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        ...

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map bfloat16 [n, columns] to bfloat16 [n, rows]."""
        ...

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map bfloat16 [n, columns] to float32 [n, rows], without a last rounding where the kernel allows it."""
        ...


@attrs.frozen(eq=False)
class SideBySide:
    """Projections whose outputs are joined: a stack whose matrices want different kernels (Q4_K with one Q6_K)."""

    parts: tuple[Linear, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return sum(part.nbytes for part in self.parts)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map bfloat16 [n, columns] to bfloat16 [n, rows]."""
        return torch.cat([part(inputs) for part in self.parts], dim=1)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map bfloat16 [n, columns] to float32 [n, rows]."""
        return torch.cat([part.logits(inputs) for part in self.parts], dim=1)


def build_linear(matrices: Iterable[RawMatrix], *, device: torch.device) -> Linear:
    """Stack matrices of the same width into one projection (q, k and v; gate and up) and pack it for `device`."""
    stacks = [tuple(stack) for _, stack in itertools.groupby(matrices, key=lambda matrix: matrix.bits)]
    parts = tuple(_pack(stack, device) for stack in stacks)
    return parts[0] if len(parts) == 1 else SideBySide(parts)


def _pack(stack: tuple[RawMatrix, ...], device: torch.device) -> Linear:
    bits = stack[0].bits
    if device.type != "cpu" or bits == 16:
        return DenseLinear.pack(stack, device)
    if are_preferred():
        return DigitLinear.pack(stack)
    if bits == 8 and (kernel := byte_product()) is not None:
        return Int8Linear.pack(stack, kernel)
    return Int4Linear.pack(stack)
