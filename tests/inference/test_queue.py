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
