"""The KV cache: per session one reservation of pages that come to life when they are first written.

A session's cache is one span of virtual memory, reserved for all the tokens the request may have and counted against the
budget when it opens, so that a request that was admitted never runs out half-way. On the CPU the system hands out the
physical pages as they are touched (the idea of vAttention, arXiv:2405.04437), so attention reads one contiguous tensor and
no page table of ours is walked per layer and token. Closing a cache returns its memory at once.
"""

from typing import Self

import attrs
import numpy as np
import torch

from meshnode.errors import OutOfMemory

__all__ = ["PAGE", "PagePool", "SessionCache"]

Views = tuple[torch.Tensor, ...]

PAGE = 256
"""Positions per page. Attention reduces over whole pages, so this number is part of the drift class."""


@attrs.define(eq=False)
class PagePool:
    """The budget that all sessions of one stage share; the only place that allocates KV memory."""

    blocks: int
    kv_heads: int
    head_size: int
    budget_bytes: int
    device: torch.device
    _reserved: int = attrs.field(default=0, init=False)  # pages promised to open sessions

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all blocks of the stage."""
        return self.blocks * 2 * self.kv_heads * PAGE * self.head_size * 2

    @property
    def used_bytes(self) -> int:
        """Bytes reserved by open sessions."""
        return self._reserved * self.page_bytes

    def reserve(self, pages: int) -> torch.Tensor:
        """Return zeros, bfloat16 [blocks, 2, pages, kv_heads, PAGE, head_size]: masked positions must be finite.

        Raises OutOfMemory, and takes nothing, when the budget does not allow it.
        """
        if (self._reserved + pages) * self.page_bytes > self.budget_bytes:
            raise OutOfMemory(
                f"the KV cache needs {pages * self.page_bytes >> 20} MiB for this request, and "
                f"{max(0, self.budget_bytes - self.used_bytes) >> 20} of {self.budget_bytes >> 20} MiB are free; "
                "ask for fewer tokens, wait for other requests, or raise engine.cache_bytes"
            )
        self._reserved += pages
        shape = (self.blocks, 2, pages, self.kv_heads, PAGE, self.head_size)
        if self.device.type == "cpu":  # calloc: untouched pages cost nothing, where torch.zeros would write them
            return torch.from_numpy(np.zeros(shape, dtype=np.uint16)).view(torch.bfloat16)
        return torch.zeros(shape, dtype=torch.bfloat16, device=self.device)

    def give_back(self, pages: int) -> None:
        """Return a reservation; its memory goes with the last reference to the tensor."""
        self._reserved -= pages


@attrs.define(eq=False)
class SessionCache:
    """The KV cache of one session at this stage: `length` positions are filled."""

    pool: PagePool
    pages: int  # reserved
    memory: torch.Tensor  # bfloat16 [blocks, 2, pages, kv_heads, PAGE, head_size]: of each block keys, then values
    length: int = attrs.field(default=0, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _batches: tuple[int, Views, Views] | None = attrs.field(default=None, init=False)  # what `batches` returned last

    @classmethod
    def open(cls, pool: PagePool, tokens: int) -> Self:
        """Reserve room for `tokens` positions. Raises OutOfMemory."""
        pages = -(-tokens // PAGE)
        return cls(pool, pages, pool.reserve(pages))

    @property
    def capacity(self) -> int:
        """Positions reserved."""
        return self.pages * PAGE

    @property
    def reserved_bytes(self) -> int:
        """Bytes this session counts for."""
        return 0 if self._closed else self.pages * self.pool.page_bytes

    def require(self, tokens: int) -> None:
        """Raise OutOfMemory unless `tokens` more positions fit the reservation."""
        if self._closed or self.length + tokens > self.capacity:
            raise OutOfMemory(f"this session reserved {self.capacity} positions and needs {self.length + tokens}")

    def slots(self, count: int) -> list[Views]:
        """Return where the next `count` positions go: per page, and in it per block, a view [2, kv_heads, n, head_size]."""
        pieces, start, end = [], self.length, self.length + count
        while start < end:
            page, offset = divmod(start, PAGE)
            n = min(PAGE - offset, end - start)
            pieces.append(self.memory.select(2, page).narrow(3, offset, n).unbind())
            start += n
        return pieces

    def batches(self, pages: int) -> tuple[Views, Views]:
        """Return the first `pages` pages as batches for a product with one row: per block views of keys and of values.

        They are [pages * kv_heads, head_size, PAGE] and [pages * kv_heads, PAGE, head_size], and good until the cache is
        closed. They are kept, since making 60 views takes as long as one block's attention.
        """
        if self._batches is None or self._batches[0] != pages:
            keys, values = self.memory[:, :, :pages].flatten(2, 3).unbind(1)
            self._batches = pages, keys.transpose(2, 3).unbind(), values.unbind()
        return self._batches[1:]

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; they are overwritten by the next forward."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length

    def close(self) -> None:
        """Give everything back; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self.memory, self._batches = self.memory.new_empty(0), None
            self.pool.give_back(self.pages)
