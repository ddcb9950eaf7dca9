"""The paged KV cache: fixed pages, a table per session, a budget for all.

A page holds the keys and values of PAGE positions of one session for all blocks of the stage. Pages are reserved (counted
against the budget) when a session opens, so that a request that was admitted never runs out half-way, and come to life
when they are first written. Closing a cache returns its pages at once; the next session reuses them.
"""

import attrs
import torch

from meshnode.errors import OutOfMemory

__all__ = ["PAGE", "LayerPages", "PagePool", "SessionCache"]

PAGE = 256
"""Positions per page. Attention reduces over whole pages, so this number is part of the drift class."""

LayerPages = list[torch.Tensor]
"""One block's pages of one session: bfloat16 [2 * kv_heads, PAGE, head_size] each, keys first."""


@attrs.define(eq=False)
class PagePool:
    """All pages of one stage; the only place that allocates KV memory."""

    blocks: int
    kv_heads: int
    head_size: int
    budget_bytes: int
    device: torch.device
    _free: list[torch.Tensor] = attrs.field(factory=list, init=False)
    _reserved: int = attrs.field(default=0, init=False)  # pages promised to open sessions

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all blocks of the stage."""
        return self.blocks * 2 * self.kv_heads * PAGE * self.head_size * 2

    @property
    def used_bytes(self) -> int:
        """Bytes reserved by open sessions."""
        return self._reserved * self.page_bytes

    def reserve(self, pages: int) -> None:
        """Promise `pages` pages. Raises OutOfMemory, and takes nothing, when the budget does not allow it."""
        if (self._reserved + pages) * self.page_bytes > self.budget_bytes:
            raise OutOfMemory(
                f"the KV cache needs {pages * self.page_bytes >> 20} MiB for this request, and "
                f"{max(0, self.budget_bytes - self.used_bytes) >> 20} of {self.budget_bytes >> 20} MiB are free; "
                "ask for fewer tokens, wait for other requests, or raise engine.cache_bytes"
            )
        self._reserved += pages

    def take(self) -> torch.Tensor:
        """Return a zeroed page, bfloat16 [blocks, 2 * kv_heads, PAGE, head_size]: masked positions must be finite."""
        if self._free:
            return self._free.pop().zero_()
        shape = (self.blocks, 2 * self.kv_heads, PAGE, self.head_size)
        return torch.zeros(shape, dtype=torch.bfloat16, device=self.device)

    def give_back(self, pages: list[torch.Tensor], reserved: int) -> None:
        """Return a session's pages and its reservation; memory of an idle pool goes back to the system."""
        self._reserved -= reserved
        if self._reserved:
            self._free.extend(pages)
        else:
            self._free.clear()


@attrs.define(eq=False)
class SessionCache:
    """The KV cache of one session at this stage: `length` positions are filled."""

    pool: PagePool
    capacity: int  # tokens reserved
    length: int = attrs.field(default=0, init=False)
    _pages: list[torch.Tensor] = attrs.field(factory=list, init=False)
    _tables: list[LayerPages] = attrs.field(factory=list, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, pool: PagePool, tokens: int) -> "SessionCache":
        """Reserve room for `tokens` positions. Raises OutOfMemory."""
        cache = cls(pool, -(-tokens // PAGE) * PAGE)
        pool.reserve(cache.capacity // PAGE)
        cache._tables = [[] for _ in range(pool.blocks)]
        return cache

    @property
    def reserved_bytes(self) -> int:
        """Bytes this session counts for."""
        return 0 if self._closed else self.capacity // PAGE * self.pool.page_bytes

    def extend(self, tokens: int) -> None:
        """Bring pages to life for `tokens` more positions. Raises OutOfMemory beyond the reservation."""
        if self.length + tokens > self.capacity:
            raise OutOfMemory(f"this session reserved {self.capacity} positions and needs {self.length + tokens}")
        while len(self._pages) * PAGE < self.length + tokens:
            page = self.pool.take()
            self._pages.append(page)
            for table, layer in zip(self._tables, page.unbind(), strict=True):
                table.append(layer)

    def layer(self, index: int) -> LayerPages:
        """Return the pages of the stage's block `index`."""
        return self._tables[index]

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; they are overwritten by the next forward."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length

    def close(self) -> None:
        """Give everything back; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self.pool.give_back(self._pages, self.capacity // PAGE)
            self._pages, self._tables = [], []
