"""Projections on torch's packed int4 kernel: bfloat16 rows, a scale and a zero per 32 columns.

A four-bit matrix is packed as it is. An eight-bit one, on a CPU without VNNI, becomes two four-bit halves side by side:
code = 16 * high + low, so w = 16 s (high - 8) + s (low - 8) + (136 s + m), and one product with the row written twice
adds the halves up inside the kernel. The scale is rounded to bfloat16, and five-bit codes are far from 136: what that moves is
taken out again for the middle of each group's codes (logits of a small Q5_0 model: 1.2 % off, as those of Q8_0, and not 11 %).
`_weight_int4pack_mm_for_cpu` gave bit-identical rows for 1 to 512 rows on one and two threads.
"""

from typing import Self

import attrs
import torch

from meshnode.engine.layers.matrix import RawMatrix
from meshnode.engine.quantization.groups import GROUP, Groups

__all__ = ["Int4Linear"]

_INNER_K_TILES = 2  # checked by the packing function, ignored by the CPU kernel


@attrs.frozen(eq=False)
class Int4Linear:
    """Multiplies bfloat16 [n, columns] to [n, rows]."""

    packed: torch.Tensor  # uint8 [rows, halves * columns / 2], the kernel's own layout
    scale_zero: torch.Tensor  # bfloat16 [halves * columns / GROUP, rows, 2]: w = (code - 8) * scale + zero
    halves: int  # 1 for four-bit codes, 2 for eight-bit codes

    @classmethod
    def pack(cls, matrices: tuple[RawMatrix, ...]) -> Self:
        """Stack matrices of the same width by rows. The kernel's layout comes in blocks of 64 rows, so packing does too."""
        rows, columns = sum(matrix.rows for matrix in matrices), matrices[0].columns
        halves = max(matrix.bits for matrix in matrices) // 4
        packed = torch.empty(rows, halves * columns // 2, dtype=torch.uint8)
        scale_zero = torch.empty(halves * columns // GROUP, rows, 2, dtype=torch.bfloat16)
        pieces = [_expand(matrix.groups(*span), halves) for matrix in matrices for span in matrix.spans()]
        codes, scales, zeros = (torch.cat(part) for part in zip(*pieces, strict=True))
        for start in range(0, rows, 1024):
            end = min(rows, start + 1024)
            packed[start:end] = torch._convert_weight_to_int4pack_for_cpu(codes[start:end].int(), _INNER_K_TILES)
        scale_zero.copy_(torch.stack([scales, zeros], dim=-1).transpose(0, 1))
        return cls(packed, scale_zero, halves)

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return self.packed.nbytes + self.scale_zero.nbytes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return bfloat16 [n, rows]."""
        if self.halves == 2:
            inputs = torch.cat((inputs, inputs), 1)
        return torch._weight_int4pack_mm_for_cpu(inputs, self.packed, GROUP, self.scale_zero)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, rows]."""
        return self(inputs).float()


def _expand(groups: Groups, halves: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return four-bit codes, scales and zeros; roundings to bfloat16 are made here so that the halves cancel them."""
    if halves == 1:
        return groups.codes, groups.scale, groups.minimum + 8 * groups.scale
    scale = groups.scale.bfloat16().float()
    by_group = groups.codes.view(len(groups.codes), -1, GROUP)
    middle = (by_group.amax(-1).float() + by_group.amin(-1)) / 2  # where the rounding of the scale moves nothing
    centre = groups.minimum + middle * groups.scale + (136 - middle) * scale
    high_zero = centre.bfloat16().float()  # what this rounding loses, the low half's zero gives back
    return (
        torch.cat([groups.codes >> 4, groups.codes & 15], dim=1),
        torch.cat([16 * scale, scale], dim=1),
        torch.cat([high_zero, centre - high_zero], dim=1),
    )
