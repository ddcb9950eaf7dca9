"""Causal attention over a paged cache, with grouped queries.

The cache comes in pages of PAGE positions, and every product is taken page by page with the page's full, fixed size: the
kernel's result for a row depends on the length it reduces over (the blocking of oneDNN's matmul does), but not on how many
rows go with it. Positions past a row's own are masked; pages past it contribute exact zeros. So a row attends to the same
bits whether it comes alone, in a chunk, or in a replay. torch's fused attention is not row-invariant (measured on 2.13:
up to 1 in 20 rows of a chunk differ from the same row alone), which is why it is not used.
"""

import torch

from meshnode.engine.kv_cache import PAGE, LayerPages

__all__ = ["attend"]

_ROW_TILE = 128
"""Rows of a chunk that attend together: bounds the scores to tile * group * context * 2 bytes per KV head."""


def attend(turned: torch.Tensor, pages: LayerPages, position: int, query_heads: int) -> torch.Tensor:
    """Write the keys and values of n new positions and attend from them.

    `turned` is float32 [n, query_heads + 2 * kv_heads, head_size] (see `Rotary.rotations`), the rows stand at `position` to
    `position + n`. Returns bfloat16 [n, query_heads * head_size].
    """
    n, heads, _ = turned.shape
    kv_heads = (heads - query_heads) // 2
    group = query_heads // kv_heads
    _store(turned[:, query_heads:], pages, position)
    queries = turned[:, :query_heads].unflatten(1, (kv_heads, group)).transpose(0, 1).to(torch.bfloat16)
    if n <= _ROW_TILE:
        return _attend_tile(queries, pages, position)
    tiles = [
        _attend_tile(queries[:, start : start + _ROW_TILE], pages, position + start) for start in range(0, n, _ROW_TILE)
    ]
    return torch.cat(tiles)


def _store(keys_values: torch.Tensor, pages: LayerPages, position: int) -> None:
    """Copy float32 [n, 2 * kv_heads, head_size] into the pages as bfloat16."""
    source = keys_values.transpose(0, 1)
    done, n = 0, source.shape[1]
    while done < n:
        page, offset = divmod(position + done, PAGE)
        count = min(PAGE - offset, n - done)
        pages[page][:, offset : offset + count].copy_(source[:, done : done + count])
        done += count


def _attend_tile(queries: torch.Tensor, pages: LayerPages, position: int) -> torch.Tensor:
    """Attend from bfloat16 [kv_heads, n, group, head_size]; returns bfloat16 [n, query_heads * head_size]."""
    kv_heads, n, group, size = queries.shape
    rows = queries.reshape(kv_heads, n * group, size)
    used = pages[: (position + n - 1) // PAGE + 1]
    scores = [torch.bmm(rows, page[:kv_heads].transpose(1, 2)) for page in used]
    weights = torch.softmax(_masked(scores, position, n, group), dim=-1)
    result = torch.bmm(weights[:, :, :PAGE], used[0][kv_heads:])
    for index in range(1, len(used)):
        result.add_(torch.bmm(weights[:, :, index * PAGE : (index + 1) * PAGE], used[index][kv_heads:]))
    return result.view(kv_heads, n, group * size).transpose(0, 1).reshape(n, kv_heads * group * size)


def _masked(scores: list[torch.Tensor], position: int, n: int, group: int) -> torch.Tensor:
    """Join the pages' scores, bfloat16 [kv_heads, n * group, PAGE] each, and hide what lies after each row."""
    joined = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
    if n == 1:
        joined[:, :, position + 1 :].fill_(-torch.inf)
        return joined
    kv_heads, _, length = joined.shape
    tail = joined.view(kv_heads, n, group, length)[..., position:]
    hidden = torch.ones(n, length - position, dtype=torch.bool, device=joined.device).triu_(1)
    tail.masked_fill_(hidden[:, None, :], -torch.inf)
    return joined
