"""The memory of a page pool: one tensor over the whole budget, whose pages take physical memory while they are written.

On Linux the tensor lies in an anonymous mapping: the system hands out memory as pages are touched (the idea of vAttention,
arXiv:2405.04437) and takes it back, zeroed, when a page is cleared. So all pages of all sessions have neighbours, which
attention uses: pages that lie side by side go through its kernels as one batch.
"""

import contextlib
import itertools
import math
import mmap
import sys
from collections.abc import Iterable
from typing import Self

import attrs
import torch

from meshnode.errors import OutOfMemory

__all__ = ["PageMemory", "runs"]

_NO_RESERVE: int = getattr(
    mmap, "MAP_NORESERVE", 0
)  # from Python 3.12 on; it matters where memory is not overcommitted


def runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending page numbers as ranges [start, end) of neighbours, as few as possible."""
    found: list[tuple[int, int]] = []
    for page in pages:
        if found and found[-1][1] == page:
            found[-1] = found[-1][0], page + 1
        else:
            found.append((page, page + 1))
    return found


@attrs.frozen(eq=False)
class PageMemory:
    """All pages, cleared or not: what is masked has to be finite, so memory is zero until it is written."""

    tensor: torch.Tensor  # bfloat16 [blocks, 2, pages, kv_heads, PAGE, head_size]: of each block keys, then values
    _mapping: mmap.mmap | None  # behind the tensor, where pages can be given back one by one

    @classmethod
    def map(cls, shape: tuple[int, ...], device: torch.device) -> Self:
        """Make it. Raises OutOfMemory when the system does not give that much, which on the CPU is address space only."""
        size = 2 * math.prod(shape)
        try:
            if device.type != "cpu" or sys.platform != "linux" or not size:
                return cls(torch.zeros(shape, dtype=torch.bfloat16, device=device), None)
            mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except (OSError, torch.OutOfMemoryError) as error:
            raise OutOfMemory(
                f"there are no {size >> 20} MiB for KV caches; lower engine.cache_bytes ({error})"
            ) from error
        with contextlib.suppress(OSError):  # a system without huge pages
            mapping.madvise(mmap.MADV_NOHUGEPAGE)  # one would hold a block's part of many pages
        return cls(torch.frombuffer(mapping, dtype=torch.bfloat16).view(shape), mapping)

    def clear(self, pages: Iterable[int]) -> None:
        """Make pages zero and give their memory back where the system takes single pages."""
        _, _, total, kv_heads, positions, size = self.tensor.shape
        piece = 2 * kv_heads * positions * size  # bytes of one page in one block, keys or values
        for start, end in runs(sorted(pages)):
            if self._mapping is None or piece % mmap.PAGESIZE:
                self.tensor[:, :, start:end].zero_()
                continue
            for block, kind in itertools.product(*map(range, self.tensor.shape[:2])):
                offset = ((2 * block + kind) * total + start) * piece
                self._mapping.madvise(mmap.MADV_DONTNEED, offset, (end - start) * piece)

    def copy(self, source: int, target: int) -> None:
        """Copy one page."""
        self.tensor[:, :, target] = self.tensor[:, :, source]
