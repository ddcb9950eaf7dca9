"""Group quantisation, the common form of every GGML format: w = code * scale + minimum over groups of columns.

A decoder per format family (`legacy`, `k_quants`) turns the blocks of a file into this form; `linear` packs it for
the kernels. Formats whose own groups are 16 wide do not fit kernels that want 32; they are widened here.
"""

from typing import Self

import attrs
import torch

__all__ = ["GROUP", "Groups"]

GROUP = 32
"""Columns that share a scale and a minimum: the smallest group torch's int4 kernels take."""


@attrs.frozen(eq=False)
class Groups:
    """A matrix [rows, columns] as integer codes with an affine map per group of columns."""

    codes: torch.Tensor  # uint8 [rows, columns], below 2**bits
    scale: torch.Tensor  # float32 [rows, columns / width]
    minimum: torch.Tensor  # float32 [rows, columns / width]
    bits: int  # 4 or 8
    width: int = GROUP  # columns per group

    def dequantize(self) -> torch.Tensor:
        """Return float32 [rows, columns], exact up to float32 rounding."""
        rows, columns = self.codes.shape
        codes = self.codes.view(rows, columns // self.width, self.width).float()
        return (codes * self.scale[..., None] + self.minimum[..., None]).view(rows, columns)

    def widened(self) -> Self:
        """Return the same matrix in groups of GROUP columns.

        Narrower groups are re-quantised to 8 bits between the smallest and the largest value of each wide group. Next to
        the 2 to 6 bits they came with, the step this adds (range / 255) is below 1 % of the quantisation step they had.
        """
        if self.width == GROUP:
            return self
        rows, columns = self.codes.shape
        values = self.dequantize().view(rows, columns // GROUP, GROUP)
        minimum, maximum = values.aminmax(dim=-1)
        scale = (maximum - minimum) / 255
        safe = torch.where(scale > 0, scale, torch.ones_like(scale))
        codes = ((values - minimum[..., None]) / safe[..., None]).round_().clamp_(0, 255).to(torch.uint8)
        return type(self)(codes.view(rows, columns), scale, minimum, bits=8)
