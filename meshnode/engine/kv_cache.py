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

__all__ = ["PAGE", "LayerCache", "PagePool", "SessionCache"]

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


@attrs.frozen(eq=False)
class LayerCache:
    """One block's keys and values of one session."""

    keys: torch.Tensor  # bfloat16 [pages, kv_heads, PAGE, head_size]
    values: torch.Tensor  # the same

    def write(self, keys_values: torch.Tensor, position: int) -> None:
        """Copy float32 [n, 2 * kv_heads, head_size], keys first, to `position` and on."""
        kv_heads, done, n = self.keys.shape[1], 0, keys_values.shape[0]
        source = keys_values.transpose(0, 1)
        while done < n:
            page, offset = divmod(position + done, PAGE)
            count = min(PAGE - offset, n - done)
            piece = source[:, done : done + count]
            self.keys[page, :, offset : offset + count].copy_(piece[:kv_heads])
            self.values[page, :, offset : offset + count].copy_(piece[kv_heads:])
            done += count


@attrs.define(eq=False)
class SessionCache:
    """The KV cache of one session at this stage: `length` positions are filled."""

    pool: PagePool
    pages: int  # reserved
    layers: tuple[LayerCache, ...]  # one per block of the stage
    length: int = attrs.field(default=0, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, pool: PagePool, tokens: int) -> Self:
        """Reserve room for `tokens` positions. Raises OutOfMemory."""
        pages = -(-tokens // PAGE)
        memory = pool.reserve(pages)
        return cls(pool, pages, tuple(LayerCache(layer[0], layer[1]) for layer in memory))

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

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; they are overwritten by the next forward."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length

    def close(self) -> None:
        """Give everything back; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self.layers = ()
            self.pool.give_back(self.pages)
