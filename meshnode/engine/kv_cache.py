"""The KV cache: pages of one pool, promised to a session when it opens and taken when it first writes them.

Promises count against the budget, so that a request that was admitted never runs out half-way. A full page can be kept by
its content (`prefixes.py` says how contents are named): other sessions that begin with the same tokens then read the
same page, and nobody writes to it. A page that is kept and not in use goes when its memory is wanted, the one that has not
been in use for longest first.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Self

import attrs
import torch

from meshnode.engine.page_memory import PageMemory
from meshnode.engine.prefixes import PAGE
from meshnode.errors import OutOfMemory

__all__ = ["PAGE", "PagePool", "SessionCache"]

Views = tuple[torch.Tensor, ...]

_EVICTED_TOGETHER = 1 / 32
"""Part of all pages that goes at once when memory is wanted: single pages from here and there would have no neighbours."""


@attrs.define(eq=False, slots=False)
class PagePool:
    """The pages that all sessions of one stage share; the only place that allocates KV memory."""

    blocks: int
    kv_heads: int
    head_size: int
    budget_bytes: int
    device: torch.device
    _promised: int = attrs.field(default=0, init=False)  # pages that open sessions may still take
    _users: dict[int, int] = attrs.field(factory=dict, init=False)  # sessions per page that is in use
    _free: list[int] = attrs.field(factory=list, init=False)  # a heap, so that pages in use stay close to each other
    _untouched: int = attrs.field(default=0, init=False)  # this page and all after it have never been taken
    _kept: dict[bytes, int] = attrs.field(factory=dict, init=False)  # by content, in use or not
    _content: dict[int, bytes] = attrs.field(factory=dict, init=False)  # the same, by page
    _idle: OrderedDict[int, None] = attrs.field(factory=OrderedDict, init=False)  # kept, not in use; longest first

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all blocks of the stage."""
        return self.blocks * 2 * self.kv_heads * PAGE * self.head_size * 2

    @cached_property
    def pages(self) -> int:
        """Pages that the budget allows."""
        return self.budget_bytes // self.page_bytes if self.blocks else 0

    @cached_property
    def memory(self) -> PageMemory:
        """Where they lie."""
        return PageMemory.map((self.blocks, 2, self.pages, self.kv_heads, PAGE, self.head_size), self.device)

    @property
    def used_bytes(self) -> int:
        """Bytes promised to or taken by open sessions; what they share counts once."""
        return (self._promised + len(self._users)) * self.page_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of pages that are kept by their content alone: they go as soon as a session needs their room."""
        return len(self._idle) * self.page_bytes

    def promise(self, pages: int) -> None:
        """Have `pages` pages ready to be taken. Raises OutOfMemory, and promises nothing, when the budget does not allow it."""
        if self._promised + len(self._users) + pages > self.pages:
            raise OutOfMemory(
                f"the KV cache needs {pages * self.page_bytes >> 20} MiB for this request, and "
                f"{max(0, self.budget_bytes - self.used_bytes) >> 20} of {self.budget_bytes >> 20} MiB are free; "
                "ask for fewer tokens, wait for other requests, or raise engine.cache_bytes"
            )
        self._promised += pages

    def release(self, promised: int, taken: Iterable[int]) -> None:
        """Take back promises, and pages from a session that had them in this order."""
        self._promised -= promised
        cleared = []
        for page in reversed(
            [*taken]
        ):  # so that the beginning of a text, without which the rest is of no use, goes last
            self._users[page] -= 1
            if self._users[page]:
                continue
            del self._users[page]
            if page in self._content:
                self._idle[page] = None
            else:
                cleared.append(page)
        self._clear(cleared)

    def take(self) -> int:
        """Return a page of zeros, in place of a promise."""
        self._promised -= 1
        if not self._free and self._untouched < self.pages:
            heapq.heappush(self._free, self._untouched)
            self._untouched += 1
        if not self._free:
            self._evict(max(1, int(self.pages * _EVICTED_TOGETHER)))
        page = heapq.heappop(self._free)
        self._users[page] = 1
        return page

    def share(self, content: bytes) -> int | None:
        """Return the page with this content, in place of a promise, or None where there is none."""
        page = self._kept.get(content)
        if page is not None:
            self._idle.pop(page, None)
            self._promised -= 1
            self._users[page] = self._users.get(page, 0) + 1
        return page

    def keep(self, page: int, content: bytes) -> None:
        """Let others share a page that is in use, and full. If one with the same content is kept already, that one stays."""
        if content not in self._kept and page not in self._content:
            self._kept[content] = page
            self._content[page] = content

    def is_shared(self, page: int) -> bool:
        """Whether anybody but its one user may read a page."""
        return page in self._content or self._users[page] > 1

    def own(self, page: int) -> bool:
        """Let a page be written by its one user, under no content any more; False when it has others."""
        if self._users[page] > 1:
            return False
        del self._kept[self._content.pop(page)]
        return True

    def forget(self) -> None:
        """Give back what is kept and not in use."""
        self._evict(len(self._idle))

    def _evict(self, count: int) -> None:
        pages = [self._idle.popitem(last=False)[0] for _ in range(min(count, len(self._idle)))]
        for page in pages:
            del self._kept[self._content.pop(page)]
        self._clear(pages)

    def _clear(self, pages: Sequence[int]) -> None:
        if pages:
            self.memory.clear(pages)
        for page in pages:
            heapq.heappush(self._free, page)


@attrs.define(eq=False)
class SessionCache:
    """The KV cache of one session at this stage: `length` positions are filled."""

    pool: PagePool
    pages: int  # promised or taken
    table: list[int] = attrs.field(factory=list, init=False)  # pages taken
    length: int = attrs.field(default=0, init=False)
    _kept: int = attrs.field(default=0, init=False)  # pages from the first one on that were offered to be kept
    _closed: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, pool: PagePool, tokens: int) -> Self:
        """Reserve room for `tokens` positions. Raises OutOfMemory."""
        pages = -(-tokens // PAGE)
        pool.promise(pages)
        return cls(pool, pages)

    @property
    def capacity(self) -> int:
        """Positions reserved."""
        return self.pages * PAGE

    @property
    def reserved_bytes(self) -> int:
        """Bytes this session counts for, shared ones included."""
        return 0 if self._closed else self.pages * self.pool.page_bytes

    def require(self, tokens: int) -> None:
        """Have the pages of `tokens` more positions taken, and nobody else reading them.

        Raises OutOfMemory when the reservation has no room for them, or a page that others read would have to be copied.
        """
        end = self.length + tokens
        if self._closed or end > self.capacity:
            raise OutOfMemory(f"this session reserved {self.capacity} positions and needs {end}")
        for index in range(self.length // PAGE, -(-end // PAGE)):
            if index == len(self.table):
                self.table.append(self.pool.take())
            elif self.pool.is_shared(self.table[index]):
                self._own(index)

    def _own(self, index: int) -> None:
        """Make a page the session's own: it has gone back to write something else."""
        page = self.table[index]
        if self.pool.own(page):
            return
        self.pool.promise(1)
        self.table[index] = self.pool.take()
        if self.length > index * PAGE:
            self.pool.memory.copy(page, self.table[index])
        self.pool.release(0, [page])

    def slots(self, count: int) -> list[Views]:
        """Return where the next `count` positions go: per page, and in it per block, a view [2, kv_heads, n, head_size]."""
        pieces, start, end = [], self.length, self.length + count
        while start < end:
            index, offset = divmod(start, PAGE)
            n = min(PAGE - offset, end - start)
            pieces.append(self.pool.memory.tensor.select(2, self.table[index]).narrow(3, offset, n).unbind())
            start += n
        return pieces

    def share(self, contents: Sequence[bytes]) -> int:
        """Go on with pages that are kept with these contents, from the first page on; return how many positions that adds.

        There are none unless all pages it has are full.
        """
        before = self.length
        if self._closed or before != len(self.table) * PAGE:
            return 0
        for content in contents[len(self.table) : self.pages]:
            page = self.pool.share(content)
            if page is None:
                break
            self.table.append(page)
            self.length += PAGE
        return self.length - before

    def keep(self, contents: Sequence[bytes]) -> None:
        """Let others share the full pages with these contents, from the first page on."""
        for index in range(self._kept, min(self.length // PAGE, len(contents))):
            self.pool.keep(self.table[index], contents[index])
            self._kept = index + 1

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; they are overwritten by the next forward."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} positions to {length}")
        self.length = length
        self._kept = min(self._kept, length // PAGE)

    def close(self) -> None:
        """Give everything back; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self.pool.release(self.pages - len(self.table), self.table)
            self.table = []
