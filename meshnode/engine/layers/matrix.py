"""A weight matrix as it lies in a shard, before a kernel's packing."""

import attrs
import torch

from meshnode.engine.quantization.ggml import PLAIN, decode_rows, dequantize_rows
from meshnode.engine.quantization.groups import GROUP, Groups

__all__ = ["ROWS_AT_A_TIME", "RawMatrix"]

ROWS_AT_A_TIME = 4096
"""Rows decoded together when packing: bounds the scratch to some 32 KiB per column. A multiple of the int4 kernel's 64."""


@attrs.frozen(eq=False)
class RawMatrix:
    """GGML type and rows of bytes, or a plain tensor."""

    ggml_type: str
    data: torch.Tensor  # uint8 [rows, row_bytes], or float [rows, columns] for plain types
    columns: int
    row_order: torch.Tensor | None = None  # int64 [rows]: row i of the projection is row row_order[i] of the data

    @property
    def rows(self) -> int:
        """Outputs of the projection."""
        return self.data.shape[0]

    @property
    def bits(self) -> int:
        """Bits per code once packed: 4, 8, or 16 for what no packed kernel takes (plain types, odd shapes)."""
        if self.ggml_type in PLAIN or self.columns % GROUP or self.rows % 16:
            return 16
        return self.groups(0, 1).bits

    def take(self, start: int, end: int) -> torch.Tensor:
        """Return the raw rows `start` to `end` of the projection."""
        return self.data[start:end] if self.row_order is None else self.data[self.row_order[start:end]]

    def groups(self, start: int, end: int) -> Groups:
        """Decode rows `start` to `end` to groups of GROUP columns."""
        return decode_rows(self.take(start, end), self.ggml_type).widened()

    def values(self, start: int, end: int) -> torch.Tensor:
        """Return float32 [end - start, columns]."""
        return dequantize_rows(self.take(start, end), self.ggml_type)

    def spans(self) -> list[tuple[int, int]]:
        """Return the row ranges in which to pack."""
        return [(start, min(self.rows, start + ROWS_AT_A_TIME)) for start in range(0, self.rows, ROWS_AT_A_TIME)]
