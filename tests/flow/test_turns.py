"""Whoever names the same thing waits; who names other things does not."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from meshnode.flow.turns import Turns


@pytest.fixture
def turns():
    return Turns()


async def _hold(turns, release, *names, task_status=trio.TASK_STATUS_IGNORED):
    async with turns.of(*names):
        task_status.started()
        await release.wait()


async def test_the_same_name_waits_and_another_does_not(turns, nursery, autojump_clock):
    release = trio.Event()
    await nursery.start(_hold, turns, release, "a", "b")
    assert [turns.is_free(*names) for names in (("a",), ("c", "b"), ("c",), ())] == [False, False, True, True]
    with trio.fail_after(1):
        await nursery.start(_hold, turns, trio.Event(), "c")
    for name in ("a", "b"):
        with trio.move_on_after(1) as waited:
            async with turns.of(name):
                pass
        assert waited.cancelled_caught, name
    release.set()
    with trio.fail_after(1):
        async with turns.of("a", "b"):
            pass
    assert turns.is_free("a", "b")


async def test_two_who_name_two_in_opposite_order_do_not_wait_for_each_other(turns, nursery, autojump_clock):
    done = []

    async def work(*names):
        for _ in range(20):
            async with turns.of(*names):
                await trio.sleep(0.01)
        done.append(names)

    with trio.fail_after(10):
        async with trio.open_nursery() as both:
            both.start_soon(work, "a", "b", "a")
            both.start_soon(work, "b", "a")
    assert len(done) == 2


async def test_names_are_forgotten_when_nobody_uses_them(turns, nursery):
    release = trio.Event()
    await nursery.start(_hold, turns, release, "a")
    with trio.CancelScope() as leaves:
        nursery.start_soon(_cancel_when_blocked, leaves)
        await _hold(turns, release, "a", "b")
    assert set(turns._locks) == {"a"}
    nursery.start_soon(_hold, turns, release, "a", "b")
    await wait_all_tasks_blocked()
    release.set()
    await wait_all_tasks_blocked()
    assert not turns._locks


async def _cancel_when_blocked(scope):
    await wait_all_tasks_blocked()
    scope.cancel()
