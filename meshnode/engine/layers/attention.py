"""Causal attention over a paged cache, with grouped queries.

The cache comes in pages of PAGE positions, and every product is taken page by page with the page's full, fixed size: the
kernel's result for a row depends on the length it reduces over (the blocking of oneDNN's matmul does), but not on how many
rows go with it. Positions past a row's own are masked; pages past it contribute exact zeros. So a row attends to the same
bits whether it comes alone, in a chunk, or in a replay. torch's fused attention is not row-invariant (measured on 2.13:
up to 1 in 20 rows of a chunk differ from the same row alone), which is why it is not used.

Scratch tensors, masks and views of the caches are the same for every block, so a step makes them once: between two blocks the
weights of a block go through the cache of the processor, and after that every call to torch costs 2 to 20 us. For one token
through the 30 blocks of SmolLM2-135M that was 1.5 of 15 ms.
"""

from collections.abc import Callable, Sequence
from typing import Self

import attrs
import torch

from meshnode.engine.kv_cache import PAGE, SessionCache

__all__ = ["Attention"]

_ROW_TILE = 128
"""Rows of a chunk that attend together: bounds the scores to tile * query_heads * context * 2 bytes."""


@attrs.frozen(eq=False)
class Attention:
    """The attention of one step, called block after block: the tensors in it are overwritten by each."""

    rotations: torch.Tensor  # complex64 [n, 1, head_size / 2], see `Rotary.rotations`
    fused: torch.Tensor  # float32 [n, (query_heads + 2 * kv_heads) * head_size]: queries, keys, values
    turning: torch.Tensor  # complex64 [n, query_heads + kv_heads, head_size / 2], a view of `fused`
    attended: torch.Tensor  # bfloat16 [n, query_heads * head_size]
    sessions: tuple[Callable[[int], None], ...]  # each attends from its rows of `fused` to its rows of `attended`

    @classmethod
    def begin(cls, rotations: torch.Tensor, caches: Sequence[tuple[SessionCache, int]], query_heads: int) -> Self:
        """Prepare a step; `caches` says whose rows there are, in order, and how many of each."""
        _, _, _, kv_heads, _, size = caches[0][0].memory.shape
        n, device = len(rotations), rotations.device
        fused = torch.empty(n, (query_heads + 2 * kv_heads) * size, device=device)
        attended = torch.empty(n, query_heads * size, dtype=torch.bfloat16, device=device)
        turning = fused.view(torch.complex64).view(n, -1, size // 2)[:, : query_heads + kv_heads]
        heads = fused.view(n, -1, size)
        if len(caches) == 1:
            pieces = [(caches[0][0], heads, attended)]
        else:
            counts = [count for _, count in caches]
            pieces = [
                (cache, rows, result)
                for (cache, _), rows, result in zip(caches, heads.split(counts), attended.split(counts), strict=True)
            ]
        sessions = tuple((_row if len(rows) == 1 else _chunk)(cache, rows, result) for cache, rows, result in pieces)
        return cls(rotations, fused, turning, attended, sessions)

    def __call__(self, fused: torch.Tensor, block: int) -> torch.Tensor:
        """Turn the fused projection of block `block` of the stage, bfloat16 [n, heads * head_size]; cache it and attend.

        Returns bfloat16 [n, query_heads * head_size], valid until the next call.
        """
        self.fused.copy_(fused)
        self.turning.mul_(self.rotations)
        for attend in self.sessions:
            attend(block)
        return self.attended


def _row(cache: SessionCache, turned: torch.Tensor, result: torch.Tensor) -> Callable[[int], None]:
    """Attend from one row: every decoded token comes here, so the calls of `attend` are counted.

    All pages go through the kernel as one batch; a batch entry's bits do not depend on the others (measured).
    """
    kv_heads, size = cache.memory.shape[3], cache.memory.shape[5]
    group = result.shape[1] // (kv_heads * size)
    used = cache.length // PAGE + 1
    queries, new = turned.split([kv_heads * group, 2 * kv_heads], 1)
    queries, new = queries.view(1, kv_heads, group, size), new.view(2, kv_heads, 1, size)
    (slots,) = cache.slots(1)
    keys_by_block, values_by_block = cache.batches(used)

    rows = result.new_empty(used, kv_heads, group, size)
    rows_of_pages = rows.view(-1, group, size)
    scores = result.new_empty(used * kv_heads, group, PAGE)
    joined = scores if used == 1 else result.new_empty(kv_heads, group, used * PAGE)
    future = joined[..., cache.length + 1 :]
    weights = torch.empty_like(joined)
    if used == 1:
        attended = result.view(kv_heads, group, size)

        def attend(block: int) -> None:
            slots[block].copy_(new)
            rows.copy_(queries)
            torch.bmm(rows_of_pages, keys_by_block[block], out=scores)
            future.fill_(-torch.inf)
            torch.softmax(scores, -1, out=weights)
            torch.bmm(weights, values_by_block[block], out=attended)

        return attend

    scores_by_head = scores.view(used, kv_heads, group, PAGE).permute(1, 2, 0, 3)
    joined_by_page = joined.view(kv_heads, group, used, PAGE)
    weights_by_page = weights.view(kv_heads, group, used, PAGE).permute(2, 0, 1, 3)
    paged = torch.empty_like(weights_by_page, memory_format=torch.contiguous_format)
    weights_of_pages = paged.view(used * kv_heads, group, PAGE)
    parts = result.new_empty(used * kv_heads, group, size)
    first, *others = parts.view(used, 1, -1).unbind()
    total = torch.empty_like(first, dtype=torch.float32)

    def attend_pages(block: int) -> None:
        slots[block].copy_(new)
        rows.copy_(queries)
        torch.bmm(rows_of_pages, keys_by_block[block], out=scores)
        joined_by_page.copy_(scores_by_head)
        future.fill_(-torch.inf)
        torch.softmax(joined, -1, out=weights)
        paged.copy_(weights_by_page)
        torch.bmm(weights_of_pages, values_by_block[block], out=parts)
        total.copy_(first)
        for part in others:
            total.add_(part)
        result.copy_(total)

    return attend_pages


def _chunk(cache: SessionCache, turned: torch.Tensor, result: torch.Tensor) -> Callable[[int], None]:
    """Attend from several rows, a tile of them at a time."""
    n, kv_heads, size = len(turned), cache.memory.shape[3], cache.memory.shape[5]
    queries, new = turned.split([turned.shape[1] - 2 * kv_heads, 2 * kv_heads], 1)
    slots = cache.slots(n)
    pieces = new.view(n, 2, kv_heads, size).permute(1, 2, 0, 3).split([piece[0].shape[2] for piece in slots], 2)
    tiles = [
        _tile(cache, tile, cache.length + index * _ROW_TILE, out)
        for index, (tile, out) in enumerate(zip(queries.split(_ROW_TILE), result.split(_ROW_TILE), strict=True))
    ]

    def attend(block: int) -> None:
        for slot, piece in zip(slots, pieces, strict=True):
            slot[block].copy_(piece)
        for tile in tiles:
            tile(block)

    return attend


def _tile(cache: SessionCache, queries: torch.Tensor, position: int, result: torch.Tensor) -> Callable[[int], None]:
    """Attend from float32 [n, query_heads, head_size], the first of them at `position`."""
    n, kv_heads, size = len(queries), cache.memory.shape[3], cache.memory.shape[5]
    group = queries.shape[1] // kv_heads
    used = (position + n - 1) // PAGE + 1
    by_head = queries.unflatten(1, (kv_heads, group)).transpose(0, 1)
    hidden = torch.ones(n, used * PAGE - position, dtype=torch.bool, device=queries.device).triu_(1)[:, None]

    def attend(block: int) -> None:
        keys, values = cache.memory[block]
        rows = by_head.to(torch.bfloat16, memory_format=torch.contiguous_format).view(kv_heads, n * group, size)
        scores = torch.cat([torch.bmm(rows, keys[page].transpose(1, 2)) for page in range(used)], -1)
        scores.view(kv_heads, n, group, -1)[..., position:].masked_fill_(hidden, -torch.inf)
        weights = torch.softmax(scores, -1)
        attended = torch.bmm(weights[:, :, :PAGE], values[0])
        if used > 1:
            total = attended.float()
            for page in range(1, used):
                total.add_(torch.bmm(weights[:, :, page * PAGE : (page + 1) * PAGE], values[page]))
            attended = total.bfloat16()
        by_row = attended.view(kv_heads, n, group, size).transpose(0, 1)
        result.view(by_row.shape).copy_(by_row)

    return attend
