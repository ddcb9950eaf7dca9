"""GGML's first family: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, blocks of 32 values with a float16 scale.

Layouts as in ggml-common.h (`block_q4_0` and so on): scale d, then for the `_1` formats minimum m, then for five-bit
formats 32 high bits, then codes; four-bit codes hold value i in the low and value i + 16 in the high half of byte i.
"""

import torch

from meshnode.engine.quantization.groups import Groups

__all__ = ["decode_q4_0", "decode_q4_1", "decode_q5_0", "decode_q5_1", "decode_q8_0", "float16_at"]


def float16_at(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    """Read the little-endian float16 at `offset` of every block: uint8 [rows, blocks, n] to float32 [rows, blocks]."""
    return blocks[..., offset : offset + 2].contiguous().view(torch.float16).squeeze(-1).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Split uint8 [..., 16] into codes [..., 32]: low halves first."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """Spread 32 bits, uint8 [..., 4], to uint8 [..., 32] of 0 or 16."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts & 1) << 4).flatten(-2)


def _flat(codes: torch.Tensor) -> torch.Tensor:
    return codes.reshape(codes.shape[0], -1)


def decode_q4_0(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 18]: w = d * (code - 8)."""
    scale = float16_at(blocks, 0)
    return Groups(_flat(_nibbles(blocks[..., 2:])), scale, -8 * scale, bits=4)


def decode_q4_1(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 20]: w = d * code + m."""
    return Groups(_flat(_nibbles(blocks[..., 4:])), float16_at(blocks, 0), float16_at(blocks, 2), bits=4)


def decode_q5_0(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 22]: w = d * (code - 16), codes below 32."""
    scale = float16_at(blocks, 0)
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return Groups(_flat(codes), scale, -16 * scale, bits=8)


def decode_q5_1(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 24]: w = d * code + m, codes below 32."""
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return Groups(_flat(codes), float16_at(blocks, 0), float16_at(blocks, 2), bits=8)


def decode_q8_0(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 34]: w = d * (code - 128), where code is the signed value plus 128."""
    scale = float16_at(blocks, 0)
    return Groups(_flat(blocks[..., 2:] ^ 128), scale, -128 * scale, bits=8)
