"""Causal attention over a paged cache on our own kernel (`engine.avx2`): turning, caching and attending in one call per block.

On torch's kernels (`layers.attention`) a decoded token makes some ten calls per block, and every page is widened to float32
whole: on one AVX2 core 3.4 of the 17 ms of a token of SmolLM2-135M after 8 others, and more with every page.
"""

from collections.abc import Sequence
from typing import Self

import attrs
import torch

from meshnode.engine.avx2 import are_preferred, check, kernels
from meshnode.engine.kv_cache import PAGE, PagePool, SessionCache

__all__ = ["DirectAttention"]

_LANES = 8  # numbers in a register


@attrs.frozen(eq=False)
class DirectAttention:
    """The attention of one step, called block after block: the tensors in it are overwritten by each."""

    pool: PagePool
    rotations: torch.Tensor  # complex64 [n, head_size / 2], see `Rotary.rotations`
    spans: torch.Tensor  # int64 [sessions, 4]: first row, rows, position, where its pages begin in `tables`
    tables: torch.Tensor  # int64: pages
    queries: torch.Tensor  # float32 [n, query_heads, head_size], turned
    attended: torch.Tensor  # bfloat16 [n, query_heads * head_size]

    @staticmethod
    def suits(pool: PagePool) -> bool:
        """Return whether the kernel can be used, and is the best there is."""
        return pool.device.type == "cpu" and are_preferred() and pool.head_size % _LANES == 0

    @classmethod
    def begin(
        cls, rotations: torch.Tensor, caches: Sequence[tuple[SessionCache, int]], pool: PagePool, query_heads: int
    ) -> Self:
        """Prepare a step; `caches` says whose rows there are, in order, and how many of each."""
        if len(rotations) != sum(count for _, count in caches):
            raise ValueError(f"{len(rotations)} rotations for {sum(count for _, count in caches)} rows")
        spans: list[tuple[int, int, int, int]] = []
        tables: list[int] = []
        n = 0
        for cache, count in caches:
            spans.append((n, count, cache.length, len(tables)))
            tables += cache.table[: -(-(cache.length + count) // PAGE)]
            n += count
        return cls(
            pool=pool,
            rotations=check(rotations.flatten(1), torch.complex64, pool.head_size // 2),
            spans=torch.tensor(spans, dtype=torch.int64),
            tables=torch.tensor(tables, dtype=torch.int64),
            queries=torch.empty(n, query_heads, pool.head_size),
            attended=torch.empty(n, query_heads * pool.head_size, dtype=torch.bfloat16),
        )

    def __call__(self, fused: torch.Tensor, block: int) -> torch.Tensor:
        """Turn the fused projection of block `block` of the stage, bfloat16 [n, heads * head_size]; cache it and attend.

        Returns bfloat16 [n, query_heads * head_size], valid until the next call. Raises MemoryError.
        """
        pool, (n, query_heads, size) = self.pool, self.queries.shape
        memory = pool.memory.tensor
        fused = check(fused, torch.bfloat16, (query_heads + 2 * pool.kv_heads) * size)
        if len(fused) != n or not 0 <= block < len(memory):
            raise ValueError(f"{len(fused)} rows in block {block}, where there are {n} in one of {len(memory)}")
        kernels.attend(
            fused.data_ptr(), self.rotations.data_ptr(), memory.data_ptr() + 2 * block * memory.stride(0),
            self.spans.data_ptr(), self.tables.data_ptr(), self.queries.data_ptr(), self.attended.data_ptr(),
            n, len(self.spans), query_heads, pool.kv_heads, size, pool.pages, PAGE, torch.get_num_threads(),
        )  # fmt: skip
        return self.attended
