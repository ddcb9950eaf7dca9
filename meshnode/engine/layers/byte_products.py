"""Exact integer products of 8-bit weights and small unsigned digits, on whichever kernel this CPU has for them.

oneDNN's takes digits of 8 bits where the CPU has VNNI; elsewhere it saturates. FBGEMM's, on AVX2, adds two products in 16 bits
first: digits of 7 bits keep that below 32768, whatever they are, and then it is exact too. On one AVX2 core the head of
SmolLM2 (49152 x 576) takes 3.3 ms for one or two rows that way, 20 ms on oneDNN, and 8.8 as two int4 halves.
"""

import warnings
from typing import Protocol, Self

import attrs
import torch

__all__ = ["ByteProduct", "byte_product"]


class ByteProduct(Protocol):
    """Multiplies digits with the weights it holds."""

    @property
    def bits(self) -> int:
        """Bits of a digit."""
        ...

    def __call__(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split int32 [n, columns], each two digits wide, into digits; return the products of the low and the high ones.

        Half of what a digit can be is taken from each digit; the products are float32 [n, rows], times the scale of each row.
        """
        ...


def byte_product() -> "type[VnniProduct | FbgemmProduct] | None":
    """Return what this CPU has; None: neither."""
    if torch.cpu._is_vnni_supported():
        return VnniProduct
    is_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    has_fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    return FbgemmProduct if is_avx2 and has_fbgemm and hasattr(torch, "_make_per_channel_quantized_tensor") else None


@attrs.frozen(eq=False)
class VnniProduct:
    """oneDNN's kernel."""

    packed: torch.Tensor  # int8 [rows, columns] in oneDNN's blocked layout
    scale: torch.Tensor  # float32 [rows]
    no_zero: torch.Tensor  # int32 zeros [rows]: the weights are symmetric
    bits: int = 8

    @classmethod
    def pack(cls, codes: torch.Tensor, scale: torch.Tensor) -> Self:
        """Pack int8 [rows, columns] with float32 [rows]."""
        packed = torch.ops.onednn.qlinear_prepack(codes, [2, codes.shape[1]])
        return cls(packed, scale, torch.zeros(len(scale), dtype=torch.int32))

    def __call__(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Multiply."""
        n, columns = numbers.shape
        # For one row oneDNN is a third faster with three rows of bytes than with two (the head of SmolLM2: 2.1 against 3.0 ms
        # with a cold cache), so the third byte, which is always 0, goes along.
        kinds = 3 if n == 1 else 2
        rows = numbers.view(torch.uint8).view(n, columns, 4)[..., :kinds].permute(2, 0, 1).reshape(kinds * n, columns)
        sums: torch.Tensor = torch.ops.onednn.qlinear_pointwise.default(
            rows, 1.0, 128, self.packed, self.scale, self.no_zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return sums[:n], sums[n : 2 * n]


@attrs.frozen(eq=False)
class FbgemmProduct:
    """FBGEMM's kernel."""

    packed: torch.ScriptObject
    bits: int = 7

    @classmethod
    def pack(cls, codes: torch.Tensor, scale: torch.Tensor) -> Self:
        """Pack int8 [rows, columns] with float32 [rows]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that quantised tensors go in some later release of torch
            tensor = torch._make_per_channel_quantized_tensor(
                codes, scale.double(), torch.zeros(len(scale), dtype=torch.int64), 0
            )
            return cls(torch.ops.quantized.linear_prepack(tensor, None))

    def __call__(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Multiply."""
        n = len(numbers)
        digits = torch.cat((numbers & 127, numbers >> 7)).sub_(64).float()  # the kernel adds 64, and rounds nothing
        sums: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            digits, 1.0, 64, self.packed
        )
        return sums[:n], sums[n:]
