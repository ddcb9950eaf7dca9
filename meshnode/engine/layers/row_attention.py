"""Attention of sessions that have one row each in a step: all their decoding goes through the kernels as one batch.

A row is multiplied with the pages of its session, each a batch entry of the same full size, whose bits do not depend on the
other entries (measured). So entries may come in any order: they come in that of memory, where neighbours need no copying.
Calls to torch are what costs here, 2 to 20 us each between two blocks, and sessions share them.
"""

from collections.abc import Callable, Sequence

import attrs
import torch

from meshnode.engine.kv_cache import PAGE, PagePool, SessionCache
from meshnode.engine.layers.products import Products

__all__ = ["RowPlans"]

Views = tuple[torch.Tensor, ...]
Tables = tuple[tuple[int, ...], ...]

_REMEMBERED = 8  # plans; a page lasts 256 steps


@attrs.frozen(eq=False)
class _Run:
    """Entries whose pages are neighbours, and views of these pages by block."""

    entries: slice
    keys: Views  # [entries * kv_heads, head_size, PAGE]
    values: Views  # [entries * kv_heads, PAGE, head_size]


@attrs.frozen(eq=False)
class _Plan:
    """What a step needs that depends on nothing but which pages its sessions have."""

    products: Products
    group: int  # query heads that share a key; the products may take a few rows more, which are zero
    sessions: int
    used: int  # pages of the longest session; shorter ones are filled up with what is masked
    runs: tuple[_Run, ...]
    owners: torch.Tensor | None  # int64 [entries]: whose query; None: one for all, or one for each
    places: (
        torch.Tensor | None
    )  # int64 [sessions * used]: which entry is a session's page; None: they come in this order
    summands: torch.Tensor | None  # the same, with the entry after the last one, which is zero, for pages there are not
    origins: torch.Tensor | None  # int64 [entries]: its place
    # In the type of the products, and `lanes` is the group, filled up:
    queries: torch.Tensor  # [sessions, kv_heads, lanes, head_size]
    rows: torch.Tensor  # [entries, kv_heads, lanes, head_size]
    scores: torch.Tensor  # [entries, kv_heads, lanes, PAGE]
    parts: torch.Tensor  # [entries + 1, kv_heads, lanes, head_size]
    future: torch.Tensor  # [sessions, 1, 1, used * PAGE]: 0, or minus infinity

    def heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of the query heads of [..., kv_heads, lanes, head_size]."""
        return tensor[..., : self.group, :]


@attrs.define(eq=False)
class RowPlans:
    """Makes them, and remembers the last few."""

    pool: PagePool
    query_heads: int
    products: Products = attrs.field(init=False)
    _plans: dict[Tables, _Plan] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.products = Products.on(self.pool.device)

    def attend(
        self, caches: Sequence[SessionCache], turned: torch.Tensor, result: torch.Tensor
    ) -> Callable[[int], None]:
        """Return what attends in a block, from float32 [sessions, heads, head_size] to bfloat16 [sessions, hidden].

        It writes the rows' keys and values to the caches first. A session must not be there twice.
        """
        tables = tuple(tuple(cache.table[: cache.length // PAGE + 1]) for cache in caches)
        plan = self._plans.get(tables)
        if plan is None:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            plan = self._plans[tables] = _plan(self, tables)
        for future, cache in zip(plan.future.view(plan.sessions, -1).zero_(), caches, strict=True):
            future[cache.length + 1 :] = -torch.inf
        kv_heads = self.pool.kv_heads
        queries, new = turned.split([self.query_heads, 2 * kv_heads], 1)
        slots = [
            (self.pool.memory.tensor[:, :, cache.table[cache.length // PAGE], :, cache.length % PAGE].unbind(), row)
            for cache, row in zip(caches, new.view(len(caches), 2, kv_heads, -1), strict=True)
        ]
        queries = queries.view(len(caches), kv_heads, plan.group, -1)
        return (_one_page if plan.used == 1 else _pages)(plan, slots, queries, result)


def _one_page(
    plan: _Plan, slots: list[tuple[Views, torch.Tensor]], queries: torch.Tensor, result: torch.Tensor
) -> Callable[[int], None]:
    """Attend where no session has more than one page."""
    rows, weights, operand = plan.rows, torch.empty_like(plan.scores), plan.products.operand
    flat = [(run, rows[run.entries].flatten(0, 1), _flat(plan.scores, run), _flat(weights, run)) for run in plan.runs]
    asked = plan.heads(rows)
    is_result = result.dtype == rows.dtype and asked.shape == rows.shape  # else the products need a place of their own
    attended = result.view(rows.shape) if is_result else torch.empty_like(rows)
    outs = [_flat(attended, run) for run in plan.runs]
    found, told = plan.heads(attended), result.view(asked.shape)

    def attend(block: int) -> None:
        for slot, row in slots:
            slot[block].copy_(row)
        asked.copy_(queries)
        for run, row, scores, _ in flat:
            torch.bmm(row, operand(run.keys[block]), out=scores)
        plan.scores.add_(plan.future)
        torch.softmax(plan.scores, -1, out=weights)
        for (run, _, _, weighted), out in zip(flat, outs, strict=True):
            torch.bmm(weighted, operand(run.values[block]), out=out)
        if not is_result:
            told.copy_(found)

    return attend


def _pages(
    plan: _Plan, slots: list[tuple[Views, torch.Tensor]], queries: torch.Tensor, result: torch.Tensor
) -> Callable[[int], None]:
    """Attend where sessions have several: a softmax over all pages of a session, then a sum over them, in their order."""
    _, kv_heads, lanes, size = plan.rows.shape
    sessions, used, operand = plan.sessions, plan.used, plan.products.operand
    rows, scores, parts = plan.rows, plan.scores, plan.parts
    asked = plan.heads(rows if plan.owners is None else plan.queries)
    by_place = scores if plan.places is None else scores.new_empty(sessions * used, kv_heads, lanes, PAGE)
    joined = scores.new_empty(sessions, kv_heads, lanes, used * PAGE)
    weights = torch.empty_like(joined)
    in_places = by_place.view(sessions, used, kv_heads, lanes, PAGE).permute(0, 2, 3, 1, 4)
    joined_by_page = joined.view(sessions, kv_heads, lanes, used, PAGE)
    weights_by_page = weights.view(sessions, kv_heads, lanes, used, PAGE).permute(0, 3, 1, 2, 4)
    placed = scores.new_empty(sessions, used, kv_heads, lanes, PAGE)
    paged = placed.view(scores.shape) if plan.origins is None else torch.empty_like(scores)
    summed = parts if plan.summands is None else parts.new_empty(sessions * used, kv_heads, lanes, size)
    first, *others = summed[: sessions * used].view(sessions, used, -1).unbind(1)
    total = torch.empty(sessions, kv_heads * lanes * size, device=scores.device)
    totals = plan.heads(total.view(sessions, kv_heads, lanes, size))
    told = result.view(totals.shape)
    flat = [(run, _flat(rows, run), _flat(scores, run), _flat(paged, run), _flat(parts, run)) for run in plan.runs]

    def attend(block: int) -> None:
        for slot, row in slots:
            slot[block].copy_(row)
        asked.copy_(queries)
        if plan.owners is not None:
            torch.index_select(plan.queries, 0, plan.owners, out=rows)
        for run, row, found, _, _ in flat:
            torch.bmm(row, operand(run.keys[block]), out=found)
        if plan.places is not None:
            torch.index_select(scores, 0, plan.places, out=by_place)
        joined_by_page.copy_(in_places)
        joined.add_(plan.future)
        torch.softmax(joined, -1, out=weights)
        placed.copy_(weights_by_page)
        if plan.origins is not None:
            torch.index_select(placed.view(by_place.shape), 0, plan.origins, out=paged)
        for run, _, _, weighted, out in flat:
            torch.bmm(weighted, operand(run.values[block]), out=out)
        if plan.summands is not None:
            torch.index_select(parts, 0, plan.summands, out=summed)
        total.copy_(first)
        for part in others:
            total.add_(part)
        told.copy_(totals)

    return attend


def _flat(tensor: torch.Tensor, run: _Run) -> torch.Tensor:
    """Return a run's entries as a batch for a product, a view."""
    return tensor[run.entries].flatten(0, 1)


def _plan(plans: RowPlans, tables: Tables) -> _Plan:
    pool, products = plans.pool, plans.products
    sessions, used, device = len(tables), max(map(len, tables)), pool.device
    group = plans.query_heads // pool.kv_heads
    entries = _in_order_of_memory(tables)
    pages = [page for page, _, _ in entries]
    place_of = {(session, index): entry for entry, (_, session, index) in enumerate(entries)}
    owners = [session for _, session, _ in entries]
    # What there is not is masked; it is taken from the session itself, so that no other's numbers can spoil it.
    places = [place_of.get((s, i), place_of[s, 0]) for s in range(sessions) for i in range(used)]
    summands = [place_of.get((s, i), len(entries)) for s in range(sessions) for i in range(used)]
    in_order = places == summands == list(range(len(entries)))
    shape = (pool.kv_heads, products.filled_up(group))

    def zeros(*sizes: int) -> torch.Tensor:
        return torch.zeros(*sizes, dtype=products.dtype, device=device)

    def indices(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=device)

    return _Plan(
        products=products,
        group=group,
        sessions=sessions,
        used=used,
        runs=_runs(pool, pages),
        owners=None if 1 in (used, sessions) else indices(owners),
        places=None if in_order else indices(places),
        summands=None if in_order else indices(summands),
        origins=None if in_order else indices([session * used + index for _, session, index in entries]),
        queries=zeros(sessions, *shape, pool.head_size),
        rows=zeros(len(entries), *shape, pool.head_size),
        scores=zeros(len(entries), *shape, PAGE),
        parts=zeros(len(entries) + 1, *shape, pool.head_size),
        future=zeros(sessions, 1, 1, used * PAGE),
    )


def _in_order_of_memory(tables: Tables) -> list[tuple[int, int, int]]:
    """Return (page, session, index) of all pages: every page once, then those that are shared a second time, and so on.

    Where nobody has more than one page the order is that of the sessions: the rows are not to be moved then.
    """
    if max(map(len, tables)) == 1:
        return [(pages[0], session, 0) for session, pages in enumerate(tables)]
    seen: dict[int, int] = {}
    found = []
    for session, pages in enumerate(tables):
        for index, page in enumerate(pages):
            seen[page] = seen.get(page, 0) + 1
            found.append((seen[page], page, session, index))
    return [(page, session, index) for _, page, session, index in sorted(found)]


def _runs(pool: PagePool, pages: list[int]) -> tuple[_Run, ...]:
    """Cut entries where the next page is not the next in memory."""
    begins = [entry for entry in range(len(pages)) if entry == 0 or pages[entry] != pages[entry - 1] + 1]
    found = []
    for begin, end in zip(begins, [*begins[1:], len(pages)], strict=True):
        keys, values = pool.memory.tensor[:, :, pages[begin] : pages[begin] + end - begin].flatten(2, 3).unbind(1)
        found.append(_Run(slice(begin, end), keys.transpose(2, 3).unbind(), values.unbind()))
    return tuple(found)
