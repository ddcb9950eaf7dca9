"""Kernels of our own, for processors with AVX2 and nothing wider; `docs/decisions/013-own-kernels.md` says why.

They are C, built when meshnode is installed where there is a compiler; without them everything runs on torch's kernels, as it
does on other processors. Each gives a row the same bits in any company. Which kernels a stage uses is part of its drift class.
"""

import torch

try:
    from meshnode.engine.avx2 import _kernels as kernels

    _ARE_PREFERRED = bool(kernels.SUPPORTED) and torch.backends.cpu.get_cpu_capability() == "AVX2"
except ImportError:  # installed without a compiler
    kernels = None  # type: ignore[assignment]
    _ARE_PREFERRED = False

__all__ = ["are_preferred", "check", "kernels"]


def are_preferred() -> bool:
    """Return whether the kernels are there and the choice: with AVX-512 torch's are, which were measured there."""
    return _ARE_PREFERRED


def check(tensor: torch.Tensor, dtype: torch.dtype, columns: int) -> torch.Tensor:
    """Return `tensor`, [n, columns], as one piece of memory. Raises ValueError for others: C reads what it is told."""
    if tensor.dtype is not dtype or tensor.dim() != 2 or tensor.shape[1] != columns:
        raise ValueError(f"a kernel wants {dtype} rows of {columns}, not {tensor.dtype} {list(tensor.shape)}")
    return tensor.contiguous()
