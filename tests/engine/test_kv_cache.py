"""Pages: promised, taken, shared by content, given back."""

import random

import pytest
import torch
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.kv_cache import PAGE, PagePool, SessionCache
from meshnode.engine.page_memory import PageMemory, runs
from meshnode.engine.stage_model import Rows, StageModel
from meshnode.errors import OutOfMemory

A, B, C = b"a", b"b", b"c"


def pool_of(pages, blocks=1):
    pool = PagePool(blocks, 1, 8, 0, torch.device("cpu"))
    pool.budget_bytes = pages * pool.page_bytes
    return pool


def filled(pool, pages, contents=(), value=1.0):
    """Return a session whose first `pages` pages are full of `value`, and kept."""
    cache = SessionCache.open(pool, pages * PAGE)
    write(cache, pages * PAGE, value)
    cache.keep(contents)
    return cache


def write(cache, count, value):
    cache.require(count)
    for piece in cache.slots(count):
        for view in piece:
            view.fill_(value)
    cache.length += count


def values(cache, index):
    return cache.pool.memory.tensor[:, :, cache.table[index]].unique().tolist()


def test_pages_with_the_same_content_are_the_same_memory():
    pool = pool_of(8)
    first = filled(pool, 3, [A, B])
    second = SessionCache.open(pool, 4 * PAGE)
    assert second.share([A, B, C]) == 2 * PAGE == second.length
    assert second.table == first.table[:2]
    assert pool.used_bytes == 5 * pool.page_bytes, "what two share counts once"
    first.close()
    write(second, 10, 2.0)
    assert (values(second, 0), values(second, 1)) == ([1.0], [1.0])
    second.close()
    assert (pool.used_bytes, pool.kept_bytes) == (0, 2 * pool.page_bytes)
    pool.forget()
    assert pool.kept_bytes == 0
    assert pool.memory.tensor.count_nonzero() == 0


def test_what_differs_after_a_page_is_not_shared():
    pool = pool_of(8)
    filled(pool, 3, [A, B, C]).close()
    other = SessionCache.open(pool, 4 * PAGE)
    assert other.share([A, b"x", C]) == PAGE
    assert other.share([A, b"x", C]) == 0
    write(other, 1, 2.0)
    assert other.share([A, B]) == 0, "in the middle of a page"


def test_the_page_that_was_not_used_for_longest_goes_first_and_the_end_of_a_text_before_its_beginning():
    pool = pool_of(4)
    filled(pool, 2, [A, B]).close()
    filled(pool, 1, [C]).close()
    assert pool.kept_bytes == 3 * pool.page_bytes
    full = filled(pool, 2)
    probe = SessionCache.open(pool, 2 * PAGE)
    assert probe.share([A, B]) == PAGE, "the end of the oldest text has gone"
    probe.close()
    more = SessionCache.open(pool, 2 * PAGE)
    write(more, 2 * PAGE, 3.0)
    assert pool.kept_bytes == 0
    full.close()
    more.close()
    assert pool.used_bytes == 0


def test_what_is_kept_never_stands_in_the_way_of_a_session():
    pool = pool_of(3)
    filled(pool, 3, [A, B, C]).close()
    assert pool.kept_bytes == 3 * pool.page_bytes
    cache = filled(pool, 3, value=2.0)
    with pytest.raises(OutOfMemory, match="0 of"):
        SessionCache.open(pool, 1)
    assert values(cache, 2) == [2.0]


def test_pages_in_use_are_never_taken_for_others():
    pool = pool_of(4)
    filled(pool, 2, [A, B]).close()
    reader = SessionCache.open(pool, 2 * PAGE)
    reader.share([A, B])
    filled(pool, 2, value=5.0).close()
    assert (values(reader, 0), values(reader, 1)) == ([1.0], [1.0])


def test_who_goes_back_into_a_shared_page_writes_to_a_copy():
    pool = pool_of(8)
    first = filled(pool, 2, [A, B])
    second = SessionCache.open(pool, 3 * PAGE)
    second.share([A, B])
    second.truncate(PAGE + 5)
    write(second, 3, 7.0)
    assert values(first, 1) == [1.0]
    assert values(second, 1) == [1.0, 7.0]
    third = SessionCache.open(pool, 2 * PAGE)
    assert third.share([A, B]) == 2 * PAGE
    assert values(third, 1) == [1.0]
    for cache in (first, second, third):
        cache.close()
    assert pool.used_bytes == 0


def test_a_page_that_is_written_again_is_no_longer_found_by_what_it_held():
    pool = pool_of(8)
    only = filled(pool, 2, [A, B])
    only.truncate(PAGE)
    write(only, 3, 7.0)
    other = SessionCache.open(pool, 2 * PAGE)
    assert other.share([A, B]) == PAGE


def test_a_copy_that_the_budget_does_not_allow_is_refused_and_spoils_nothing():
    pool = pool_of(2)
    first = filled(pool, 2, [A, B])
    first.close()
    second, third = SessionCache.open(pool, PAGE), SessionCache.open(pool, PAGE)
    second.share([A])
    third.share([A])
    filler = SessionCache.open(pool, PAGE)
    second.truncate(0)
    with pytest.raises(OutOfMemory):
        second.require(1)
    assert values(third, 0) == [1.0]
    for cache in (second, third, filler):
        cache.close()
    assert pool.used_bytes == 0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_sessions_do_every_page_is_accounted_for(seed):
    choose, pool = random.Random(seed), pool_of(12)
    texts = [[bytes([text, index]) for index in range(6)] for text in range(3)]
    open_now = []
    for _ in range(300):
        action = choose.random()
        if action < 0.3:
            try:
                open_now.append((SessionCache.open(pool, choose.randint(1, 5 * PAGE)), choose.choice(texts)))
            except OutOfMemory:
                assert open_now
        elif open_now:
            cache, text = choose.choice(open_now)
            if action < 0.4:
                cache.share(text)
            elif action < 0.8:
                try:
                    count = min(choose.choice([1, 100, PAGE]), cache.capacity - cache.length)
                    cache.require(count)
                    cache.length += count
                except OutOfMemory:
                    pass
                cache.keep(text)
            elif action < 0.9:
                cache.truncate(choose.randint(0, cache.length))
            else:
                open_now.remove((cache, text))
                cache.close()
        pages = {page for cache, _ in open_now for page in cache.table}
        assert len(pages) * pool.page_bytes + pool.kept_bytes <= pool.budget_bytes
        promised = sum(cache.pages - len(cache.table) for cache, _ in open_now)
        assert pool.used_bytes == (len(pages) + promised) * pool.page_bytes
    for cache, _ in open_now:
        cache.close()
    pool.forget()
    assert (pool.used_bytes, pool.kept_bytes) == (0, 0)
    everything = SessionCache.open(pool, 12 * PAGE)
    everything.require(12 * PAGE)
    assert sorted(everything.table) == list(range(12))


def test_pages_that_are_given_back_are_zero_again_whatever_their_size():
    for size in (8, 1):  # one whose pages are whole pages of the system, and one whose are not
        memory = PageMemory.map((2, 2, 6, 1, PAGE, size), torch.device("cpu"))
        memory.tensor.fill_(1.0)
        memory.clear([4, 1, 2])
        assert memory.tensor[:, :, [1, 2, 4]].count_nonzero() == 0
        assert bool((memory.tensor[:, :, [0, 3, 5]] == 1.0).all())
    assert runs([1, 2, 4]) == [(1, 3), (4, 5)]


@pytest.mark.parametrize("threads", [1, 2])
def test_wherever_pages_lie_and_whoever_reads_them_no_bit_changes(tmp_path, threads):
    """Sessions of several lengths, some on pages of others, in a pool full of holes, against each text alone."""
    stage = StageModel.load(stage_of(tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path), tmp_path))
    choose = random.Random(threads)
    common = choose.choices(range(3, 259), k=2 * PAGE)
    texts = [common + choose.choices(range(3, 259), k=count) for count in (30, 300, 290)]
    texts += [choose.choices(range(3, 259), k=count) for count in (200, 270, 600)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = []
        for text in texts:
            cache = stage.open_cache(len(text))
            alone.append(stage.forward([Rows(cache, torch.tensor(text), "all")])[0])
            if text is texts[0]:
                cache.keep([A, B])
            cache.close()
        gaps = [stage.open_cache(1) for _ in range(9)]
        for gap in gaps:
            gap.require(1)
        for gap in gaps[::2]:
            gap.close()
        caches = [stage.open_cache(len(text)) for text in texts]
        assert [cache.share([A, B]) for cache in caches[:3]] == [2 * PAGE] * 3
        for cache, text in zip(caches[3:], texts[3:], strict=True):
            stage.forward([Rows(cache, torch.tensor(text[: len(text) - 25]), "none")])
        while running := [index for index, text in enumerate(texts) if caches[index].length < len(text)]:
            choose.shuffle(running)
            batch = [
                Rows(caches[index], torch.tensor(texts[index][caches[index].length :][: 40 if index == long else 1]))
                for long in [choose.choice([*running, None])]
                for index in running
            ]
            ends = [rows.cache.length + len(rows.inputs) - 1 for rows in batch]
            for index, end, logits in zip(running, ends, stage.forward(batch), strict=True):
                assert torch.equal(logits[0], alone[index][end]), (index, end)
    finally:
        torch.set_num_threads(before)


def test_a_budget_beyond_the_address_space_is_refused_by_name():
    with pytest.raises(OutOfMemory, match=r"lower engine\.cache_bytes"):
        PageMemory.map((1, 2, 1 << 36, 1, PAGE, 8), torch.device("cpu"))
