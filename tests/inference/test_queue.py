"""The fair queue."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from meshnode.errors import Overloaded
from meshnode.inference.queue import FairQueue


async def test_turns_go_round_among_clients(autojump_clock):
    queue, order = FairQueue(1, 100), []

    async def work(client):
        async with queue.turn(client):
            order.append(client)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for client in ("greedy", "greedy", "greedy", "greedy", "modest", "other"):
            nursery.start_soon(work, client)
            await wait_all_tasks_blocked()
    assert order[0] == "greedy"
    assert set(order[1:4]) == {"greedy", "modest", "other"}
    assert (queue.active, queue.waiting) == (0, 0)


async def test_it_waits_up_to_its_limit_and_then_refuses(autojump_clock):
    queue = FairQueue(1, 2)

    async def hold():
        async with queue.turn("a"):
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold)
            await wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="2 requests are waiting"):
            async with queue.turn("b"):
                pass
    assert trio.current_time() == 30


async def test_leaving_the_line_gives_up_the_place(autojump_clock):
    queue = FairQueue(1, 10)
    async with queue.turn("a"):
        with trio.move_on_after(1):
            async with queue.turn("b"):
                raise AssertionError
        assert queue.waiting == 0
    async with queue.turn("c"):
        assert queue.active == 1


async def test_a_turn_that_comes_with_the_cancellation_is_passed_on(autojump_clock):
    queue, got = FairQueue(1, 10), []

    async def late():
        async with queue.turn("late"):
            got.append("late")

    scope = trio.CancelScope()

    async def doomed():
        with scope:
            async with queue.turn("doomed"):
                got.append("doomed")

    async with trio.open_nursery() as nursery:
        async with queue.turn("first"):
            nursery.start_soon(doomed)
            await wait_all_tasks_blocked()
            nursery.start_soon(late)
            await wait_all_tasks_blocked()
        scope.cancel()
    assert "late" in got
    assert (queue.active, queue.waiting) == (0, 0)


async def lie(queue, client, ended):
    """Take a turn that lies idle for a hundred seconds; note when it is over."""
    async with queue.turn(client) as idle:
        try:
            with idle("request"):
                await trio.sleep(100)
        except Overloaded:
            await trio.sleep(0.1)  # while what it held is freed on every node
    ended[client] = trio.current_time()


async def test_of_turns_that_lie_idle_as_many_end_as_others_wait_for_the_longest_first(autojump_clock):
    queue, ended = FairQueue(3, 10), {}
    async with trio.open_nursery() as nursery:
        for client in ("first", "second", "third"):
            nursery.start_soon(lie, queue, client, ended)
            await trio.sleep(1)
        await trio.sleep(50)
        async with queue.turn("other"):
            assert ended == {"first": trio.current_time()}
    assert ended == {"first": 53.1, "second": 101, "third": 102}
    assert (queue.active, queue.waiting) == (0, 0)


@pytest.mark.parametrize(("leaves_after", "end"), [(5, 2.1), (0.5, 100)])
async def test_a_turn_may_lie_for_a_while_and_for_ever_while_nobody_waits(autojump_clock, leaves_after, end):
    queue, ended = FairQueue(1, 10), {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lie, queue, "idle", ended)
        await trio.sleep(1)
        with trio.move_on_after(leaves_after):
            async with queue.turn("other"):
                pass
    assert ended == {"idle": end}
    assert (queue.active, queue.waiting) == (0, 0)
