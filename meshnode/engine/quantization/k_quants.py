"""GGML's K family: Q2_K to Q6_K, super-blocks of 256 values whose groups share quantised scales.

Layouts as in ggml-common.h (`block_q2_K` and so on). Groups are 32 wide for Q4_K and Q5_K, which the packed kernels
take as they are, and 16 wide for Q2_K, Q3_K and Q6_K, which are widened when they are packed (`Groups.widened`).
"""

import torch

from meshnode.engine.quantization.groups import Groups
from meshnode.engine.quantization.legacy import float16_at

__all__ = ["decode_q2_k", "decode_q3_k", "decode_q4_k", "decode_q5_k", "decode_q6_k"]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(tensor.shape[0], -1)


def _crumbs(packed: torch.Tensor) -> torch.Tensor:
    """Split uint8 [..., 64] into 256 two-bit codes: bytes 0-31 hold values 0-127, two bits per 32 values."""
    halves = packed.unflatten(-1, (2, 1, 32))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device).view(4, 1)
    codes: torch.Tensor = halves >> shifts & 3
    return codes.flatten(-3)


def _six_bit_scales(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack uint8 [..., 12] into the 8 scales and 8 minimums of Q4_K and Q5_K (six bits each)."""
    first, second, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat([first & 63, (high & 15) | (first >> 6 << 4)], dim=-1)
    minimums = torch.cat([second & 63, (high >> 4) | (second >> 6 << 4)], dim=-1)
    return scales, minimums


def decode_q2_k(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 84]: 16 bytes of four-bit scale and minimum, 64 of codes, d, dmin."""
    d, dmin = float16_at(blocks, 80), float16_at(blocks, 82)
    scales = blocks[..., :16]
    scale = d[..., None] * (scales & 15)
    minimum = -dmin[..., None] * (scales >> 4)
    return Groups(_flat(_crumbs(blocks[..., 16:80])), _flat(scale), _flat(minimum), bits=4, width=16)


def decode_q3_k(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 110]: 32 bytes of high bits, 64 of codes, 12 of six-bit scales, d."""
    d = float16_at(blocks, 108)
    packed = blocks[..., 96:108]
    low = torch.cat([packed[..., :8] & 15, packed[..., :8] >> 4], dim=-1)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).view(4, 1)
    high = (packed[..., None, 8:] >> shifts & 3).flatten(-2)
    scale = d[..., None] * ((low | high << 4).to(torch.int8) - 32)
    bits = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(8, 1)
    top = (blocks[..., None, :32] >> bits & 1).flatten(-2)
    codes = _crumbs(blocks[..., 32:96]) | top << 2
    return Groups(_flat(codes), _flat(scale), _flat(-4 * scale), bits=4, width=16)


def decode_q4_k(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 144]: d, dmin, 12 bytes of scales, 128 of codes (32 low, then 32 high halves)."""
    scales, minimums = _six_bit_scales(blocks[..., 4:16])
    scale, minimum = float16_at(blocks, 0)[..., None] * scales, -float16_at(blocks, 2)[..., None] * minimums
    packed = blocks[..., 16:].unflatten(-1, (4, 32))
    codes = torch.stack([packed & 15, packed >> 4], dim=-2)
    return Groups(_flat(codes), _flat(scale), _flat(minimum), bits=4)


def decode_q5_k(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 176]: as Q4_K with 32 bytes of fifth bits, one bit per group of 32."""
    scales, minimums = _six_bit_scales(blocks[..., 4:16])
    scale, minimum = float16_at(blocks, 0)[..., None] * scales, -float16_at(blocks, 2)[..., None] * minimums
    packed = blocks[..., 48:].unflatten(-1, (4, 32))
    low = torch.stack([packed & 15, packed >> 4], dim=-2).flatten(-3, -2)
    bits = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(8, 1)
    codes = low | (blocks[..., None, 16:48] >> bits & 1) << 4
    return Groups(_flat(codes), _flat(scale), _flat(minimum), bits=8)


def decode_q6_k(blocks: torch.Tensor) -> Groups:
    """Decode uint8 [rows, blocks, 210]: 128 bytes of low halves, 64 of high two bits, 16 signed scales, d."""
    low = blocks[..., :128].unflatten(-1, (2, 64))
    low = torch.cat([low & 15, low >> 4], dim=-1).flatten(-2)
    codes = low | _crumbs(blocks[..., 128:192]) << 4
    scale = float16_at(blocks, 208)[..., None] * blocks[..., 192:208].contiguous().view(torch.int8)
    return Groups(_flat(codes), _flat(scale), _flat(-32 * scale), bits=8, width=16)
