"""Broadcast, latest, buckets, budgets, lanes and tickers."""

import random
import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from meshnode.flow.broadcast import Broadcast, Lagged, Overflow
from meshnode.flow.buckets import KeyedBuckets
from meshnode.flow.changes import Changes
from meshnode.flow.deadlines import Budget
from meshnode.flow.events import first_of
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.periodic import Ticker


async def test_a_subscriber_gets_everything_in_order(nursery):
    board = Broadcast("board")
    seen = []

    async def read(subscription):
        async for value in subscription:
            seen.append(value)

    with board.subscribe(8) as subscription:
        nursery.start_soon(read, subscription)
        for value in range(5):
            board.publish(value)
        await wait_all_tasks_blocked()
        board.publish(5)
        await wait_all_tasks_blocked()
    board.publish(6)
    assert seen == [0, 1, 2, 3, 4, 5]
    nursery.cancel_scope.cancel()


async def test_a_slow_subscriber_loses_the_oldest_and_can_count_them():
    board = Broadcast("board")
    with board.subscribe(2) as subscription:
        for value in range(5):
            board.publish(value)
        reader = aiter(subscription)
        assert [await anext(reader), await anext(reader)] == [3, 4]
        assert subscription.dropped == 3


async def test_a_strict_subscriber_is_disconnected():
    board = Broadcast("board")
    with board.subscribe(1, Overflow.DISCONNECT) as subscription:
        for value in range(3):
            board.publish(value)
        reader = aiter(subscription)
        assert await anext(reader) == 0
        with pytest.raises(Lagged):
            await anext(reader)


async def test_latest_skips_to_the_newest(nursery):
    latest = Latest("a")
    seen = []

    async def read():
        async for value in latest.values():
            seen.append(value)

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    latest.set("b")
    latest.set("c")
    await wait_all_tasks_blocked()
    assert seen == ["a", "c"]
    assert await latest.changed(0) == 2
    nursery.cancel_scope.cancel()


async def test_a_bucket_refills_at_its_rate(autojump_clock):
    buckets = KeyedBuckets(rate=2, burst=3)
    assert [buckets.try_take("a") for _ in range(3)] == [None] * 3
    assert buckets.try_take("a") == pytest.approx(0.5)
    assert buckets.try_take("b") is None
    await trio.sleep(0.5)
    assert buckets.try_take("a") is None
    assert buckets.try_take("a") is not None


async def test_buckets_forget_the_longest_unused_key(autojump_clock):
    buckets = KeyedBuckets(rate=0.001, burst=1, max_keys=2)
    for key in "abc":
        assert buckets.try_take(key) is None
    assert buckets.try_take("c") is not None
    assert buckets.try_take("a") is None


def test_who_looks_again_and_again_is_told_whether_anything_was_set_since():
    one, other = Latest(0), Latest("a")
    changes = Changes((one, other))
    assert [changes.there_are(), changes.there_are()] == [True, False]
    one.set(1)
    other.set("a")
    assert [changes.there_are(), changes.there_are()] == [True, False]
    other.set("b")
    assert changes.there_are()


async def test_a_budget_is_shared_by_its_steps(autojump_clock):
    budget = Budget.of(10)
    assert budget.share(4) == 4
    await trio.sleep(8)
    assert budget.share(4) == pytest.approx(2)
    await trio.sleep(5)
    assert budget.remaining() == 0


async def test_the_store_lane_runs_one_thing_at_a_time():
    lanes = Lanes()
    running, most = 0, 0
    lock = threading.Lock()

    def work(value):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.002)
        with lock:
            running -= 1
        return value

    results = []

    async def one(value):
        results.append(await lanes.run("store", work, value))

    async with trio.open_nursery() as nursery:
        for value in range(5):
            nursery.start_soon(one, value)
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert most == 1


async def test_a_ticker_does_not_drift_and_skips_missed_ticks(autojump_clock):
    start, times = trio.current_time(), []
    async for tick in Ticker(10):
        times.append((tick, trio.current_time() - start))
        await trio.sleep(25 if tick == 1 else 1)
        if tick >= 4:
            break
    assert times == [(0, 0), (1, 10), (4, 40)]


async def test_jitter_stays_within_its_share(autojump_clock):
    start = trio.current_time()
    async for tick in Ticker(10, jitter=0.5, rng=random.Random(1)):
        late = trio.current_time() - start - 10 * tick
        assert 0 <= late <= 5
        if tick == 20:
            break


async def test_a_reader_that_always_finds_something_lets_others_run(nursery):
    board, latest, turns = Broadcast("board"), Latest(0), []

    async def read_board():
        with board.subscribe(4) as subscription:
            board.publish("first")
            async for _ in subscription:
                board.publish("next")
                turns.append("board")

    async def read_latest():
        async for value in latest.values():
            latest.set(value + 1)
            turns.append("latest")

    nursery.start_soon(read_board)
    nursery.start_soon(read_latest)
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    assert {"board", "latest"} <= set(turns)
    nursery.cancel_scope.cancel()


async def test_a_subscriber_without_room_is_refused_and_the_publisher_unharmed():
    board = Broadcast("board")
    with pytest.raises(ValueError, match="buffer"), board.subscribe(0):
        pass
    board.publish("still works")


def test_a_budget_is_not_built_from_seconds_by_mistake():
    with pytest.raises(TypeError):
        Budget(25.0)


async def test_the_first_of_several_events_ends_the_wait():
    early, never = trio.Event(), trio.Event()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first_of, early, never)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            early.set()
