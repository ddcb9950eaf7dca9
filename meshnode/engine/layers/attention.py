"""Causal attention over a paged cache, with grouped queries.

The cache comes in pages of PAGE positions, and every product is taken page by page with the page's full, fixed size: the
kernel's result for a row depends on the length it reduces over (the blocking of oneDNN's matmul does), but not on how many
rows go with it. Positions past a row's own are masked; pages past it contribute exact zeros. So a row attends to the same
bits whether it comes alone, in a chunk, or in a replay. torch's fused attention is not row-invariant (measured on 2.13:
up to 1 in 20 rows of a chunk differ from the same row alone), which is why it is not used.
"""

import torch

from meshnode.engine.kv_cache import PAGE, LayerCache

__all__ = ["attend"]

_ROW_TILE = 128
"""Rows of a chunk that attend together: bounds the scores to tile * query_heads * context * 2 bytes."""


def attend(turned: torch.Tensor, cache: LayerCache, position: int, query_heads: int) -> torch.Tensor:
    """Write the keys and values of n new positions and attend from them.

    `turned` is float32 [n, query_heads + 2 * kv_heads, head_size] (see `Rotary.rotations`), the rows stand at `position` to
    `position + n`. Returns bfloat16 [n, query_heads * head_size].
    """
    n = turned.shape[0]
    cache.write(turned[:, query_heads:], position)
    if n == 1:
        return _attend_one(turned[0, :query_heads], cache, position)
    kv_heads = cache.keys.shape[1]
    queries = turned[:, :query_heads].unflatten(1, (kv_heads, query_heads // kv_heads)).transpose(0, 1).bfloat16()
    tiles = [
        _attend_tile(queries[:, start : start + _ROW_TILE], cache, position + start) for start in range(0, n, _ROW_TILE)
    ]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles)


def _attend_one(queries: torch.Tensor, cache: LayerCache, position: int) -> torch.Tensor:
    """Attend from one row, float32 [query_heads, head_size]: every decoded token comes here, so calls are counted.

    All pages go through the kernel as one batch; a batch entry's bits do not depend on the others (measured).
    """
    _, kv_heads, _, size = cache.keys.shape
    used = position // PAGE + 1
    rows = queries.bfloat16().view(kv_heads, -1, size)
    if used == 1:
        scores = torch.bmm(rows, cache.keys[0].transpose(1, 2))
        if position + 1 < PAGE:
            scores.narrow(2, position + 1, PAGE - position - 1).fill_(-torch.inf)
        return torch.bmm(torch.softmax(scores, -1), cache.values[0]).view(1, -1)
    group = rows.shape[1]
    keys = cache.keys[:used].view(used * kv_heads, PAGE, size)
    values = cache.values[:used].view(used * kv_heads, PAGE, size)
    repeated = rows.expand(used, kv_heads, group, size).reshape(used * kv_heads, group, size)
    scores = torch.bmm(repeated, keys.transpose(1, 2)).view(used, kv_heads, group, PAGE)
    joined = scores.permute(1, 2, 0, 3).reshape(kv_heads, group, used * PAGE)
    if position + 1 < used * PAGE:
        joined.narrow(2, position + 1, used * PAGE - position - 1).fill_(-torch.inf)
    weights = torch.softmax(joined, -1).view(kv_heads, group, used, PAGE).permute(2, 0, 1, 3)
    parts = torch.bmm(weights.reshape(used * kv_heads, group, PAGE), values).view(used, -1)
    total = parts[0].float()
    for index in range(1, used):
        total.add_(parts[index])
    return total.bfloat16().view(1, -1)


def _attend_tile(queries: torch.Tensor, cache: LayerCache, position: int) -> torch.Tensor:
    """Attend from bfloat16 [kv_heads, n, group, head_size]; returns bfloat16 [n, query_heads * head_size]."""
    kv_heads, n, group, size = queries.shape
    rows = queries.reshape(kv_heads, n * group, size)
    used = (position + n - 1) // PAGE + 1
    scores = torch.cat([torch.bmm(rows, cache.keys[page].transpose(1, 2)) for page in range(used)], -1)
    tail = scores.view(kv_heads, n, group, -1)[..., position:]
    hidden = torch.ones(n, tail.shape[-1], dtype=torch.bool, device=rows.device).triu_(1)
    tail.masked_fill_(hidden[:, None, :], -torch.inf)
    weights = torch.softmax(scores, -1)
    result = torch.bmm(weights[:, :, :PAGE], cache.values[0])
    if used > 1:
        total = result.float()
        for page in range(1, used):
            total.add_(torch.bmm(weights[:, :, page * PAGE : (page + 1) * PAGE], cache.values[page]))
        result = total.bfloat16()
    return result.view(kv_heads, n, group * size).transpose(0, 1).reshape(n, kv_heads * group * size)
