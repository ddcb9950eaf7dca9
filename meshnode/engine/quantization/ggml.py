"""The table of GGML types: how many values a block has, how many bytes, and how to decode it.

Sizes are those of ggml-common.h; the `gguf` package's table is the oracle in the tests.
"""

from collections.abc import Callable

import attrs
import torch

from meshnode.engine.quantization import k_quants, legacy
from meshnode.engine.quantization.groups import Groups
from meshnode.errors import UnsupportedModel

__all__ = ["PLAIN", "QUANTIZED", "BlockFormat", "decode_rows", "dequantize_rows"]

PLAIN: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are torch dtypes."""


@attrs.frozen
class BlockFormat:
    """One quantised type: `values` per block of `nbytes`, and its decoder."""

    values: int
    nbytes: int
    decode: Callable[[torch.Tensor], Groups]


QUANTIZED: dict[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, legacy.decode_q4_0),
    "Q4_1": BlockFormat(32, 20, legacy.decode_q4_1),
    "Q5_0": BlockFormat(32, 22, legacy.decode_q5_0),
    "Q5_1": BlockFormat(32, 24, legacy.decode_q5_1),
    "Q8_0": BlockFormat(32, 34, legacy.decode_q8_0),
    "Q2_K": BlockFormat(256, 84, k_quants.decode_q2_k),
    "Q3_K": BlockFormat(256, 110, k_quants.decode_q3_k),
    "Q4_K": BlockFormat(256, 144, k_quants.decode_q4_k),
    "Q5_K": BlockFormat(256, 176, k_quants.decode_q5_k),
    "Q6_K": BlockFormat(256, 210, k_quants.decode_q6_k),
}


def decode_rows(raw: torch.Tensor, ggml_type: str) -> Groups:
    """Decode raw rows, uint8 [rows, row_bytes], of a quantised type. Raises UnsupportedModel for other types."""
    block = QUANTIZED.get(ggml_type)
    if block is None:
        raise UnsupportedModel(
            f"tensors of GGML type {ggml_type} cannot be run; known: {', '.join([*PLAIN, *QUANTIZED])}"
        )
    return block.decode(raw.view(raw.shape[0], -1, block.nbytes))


def dequantize_rows(raw: torch.Tensor, ggml_type: str) -> torch.Tensor:
    """Return float32 [rows, columns] of raw rows of any readable type (plain types come with their own dtype)."""
    if ggml_type in PLAIN:
        return raw.float()
    return decode_rows(raw, ggml_type).dequantize()
