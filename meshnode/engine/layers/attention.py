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

import itertools
from collections.abc import Callable, Sequence
from typing import Self

import attrs
import torch

from meshnode.engine.kv_cache import PAGE, SessionCache
from meshnode.engine.layers.products import Products
from meshnode.engine.layers.row_attention import RowPlans

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
    sessions: tuple[Callable[[int], None], ...]  # each attends from some rows of `fused` to the same rows of `attended`

    @classmethod
    def begin(cls, rotations: torch.Tensor, caches: Sequence[tuple[SessionCache, int]], plans: RowPlans) -> Self:
        """Prepare a step; `caches` says whose rows there are, in order, and how many of each."""
        pool, query_heads = plans.pool, plans.query_heads
        n, device = len(rotations), rotations.device
        fused = torch.empty(n, (query_heads + 2 * pool.kv_heads) * pool.head_size, device=device)
        attended = torch.empty(n, query_heads * pool.head_size, dtype=torch.bfloat16, device=device)
        turning = fused.view(torch.complex64).view(n, -1, pool.head_size // 2)[:, : query_heads + pool.kv_heads]
        heads = fused.view(n, -1, pool.head_size)
        sessions: list[Callable[[int], None]] = []
        begin = 0
        for size, group in itertools.groupby(caches, key=_kind):
            together = list(group)
            if size:
                end = begin + len(together)
                only = [cache for cache, _ in together]
                sessions.append(plans.attend(only, heads[begin:end], attended[begin:end]))
                begin = end
                continue
            for cache, count in together:
                rows = slice(begin, begin + count)
                sessions.append(_chunk(cache, plans.products, heads[rows], attended[rows]))
                begin += count
        return cls(rotations, fused, turning, attended, tuple(sessions))

    @staticmethod
    def order(entry: tuple[SessionCache, int]) -> tuple[int, int]:
        """Return the key by which a step's sessions are best sorted: those that can attend together, as their pages lie."""
        return _kind(entry), entry[0].table[0]

    def __call__(self, fused: torch.Tensor, block: int) -> torch.Tensor:
        """Turn the fused projection of block `block` of the stage, bfloat16 [n, heads * head_size]; cache it and attend.

        Returns bfloat16 [n, query_heads * head_size], valid until the next call.
        """
        self.fused.copy_(fused)
        self.turning.mul_(self.rotations)
        for attend in self.sessions:
            attend(block)
        return self.attended


def _kind(entry: tuple[SessionCache, int]) -> int:
    """Return 0 for several rows. Else how many pages a session has, up to the next power of two: what that adds is masked."""
    cache, count = entry
    return 1 << (cache.length // PAGE).bit_length() if count == 1 else 0


def _chunk(
    cache: SessionCache, products: Products, turned: torch.Tensor, result: torch.Tensor
) -> Callable[[int], None]:
    """Attend from several rows, a tile of them at a time."""
    n, kv_heads, size = len(turned), cache.pool.kv_heads, cache.pool.head_size
    queries, new = turned.split([turned.shape[1] - 2 * kv_heads, 2 * kv_heads], 1)
    slots = cache.slots(n)
    pieces = new.view(n, 2, kv_heads, size).permute(1, 2, 0, 3).split([piece[0].shape[2] for piece in slots], 2)
    tiles = [
        _tile(cache, products, tile, cache.length + index * _ROW_TILE, out)
        for index, (tile, out) in enumerate(zip(queries.split(_ROW_TILE), result.split(_ROW_TILE), strict=True))
    ]

    def attend(block: int) -> None:
        for slot, piece in zip(slots, pieces, strict=True):
            slot[block].copy_(piece)
        for tile in tiles:
            tile(block)

    return attend


def _tile(
    cache: SessionCache, products: Products, queries: torch.Tensor, position: int, result: torch.Tensor
) -> Callable[[int], None]:
    """Attend from float32 [n, query_heads, head_size], the first of them at `position`."""
    n, kv_heads, size = len(queries), cache.pool.kv_heads, cache.pool.head_size
    group = queries.shape[1] // kv_heads
    used = (position + n - 1) // PAGE + 1
    by_head = queries.unflatten(1, (kv_heads, group)).transpose(0, 1)
    hidden = torch.ones(n, used * PAGE - position, dtype=torch.bool, device=queries.device).triu_(1)[:, None]
    memory, pages = cache.pool.memory.tensor, cache.table[:used]
    rows = queries.new_zeros(kv_heads, products.filled_up(n * group), size, dtype=products.dtype)

    def wanted(filled_up: torch.Tensor) -> torch.Tensor:
        return filled_up[:, : n * group].view(kv_heads, n, group, -1)

    asked = wanted(rows)

    def attend(block: int) -> None:
        keys, values = memory[block]
        asked.copy_(by_head)
        scores = torch.cat([torch.bmm(rows, products.operand(keys[page].transpose(1, 2))) for page in pages], -1)
        wanted(scores)[..., position:].masked_fill_(hidden, -torch.inf)
        weights = torch.softmax(scores, -1)
        attended = torch.bmm(weights[:, :, :PAGE], products.operand(values[pages[0]]))
        if used > 1:
            attended = attended.float()
            for index, page in enumerate(pages[1:], 1):
                part = weights[:, :, index * PAGE : (index + 1) * PAGE]
                attended.add_(torch.bmm(part, products.operand(values[page])))
        by_row = wanted(attended).transpose(0, 1)
        result.view(by_row.shape).copy_(by_row)

    return attend
