"""When a worker counts as frozen, in virtual time."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from meshnode.engine.process_executor import ProcessExecutor
from meshnode.errors import WorkerLost


class Worker:
    """A connection whose other end answers while `answers` is true."""

    def __init__(self):
        self.heard, self.silent_for, self.answers, self.pings = False, 0.0, True, 0
        self.is_awaited = False

    def post(self, exchange, message):
        self.pings += 1
        if self.answers:
            self.heard = True


def watched(worker, **limits):
    executor = ProcessExecutor(None, **limits)
    executor._connection = worker
    return executor._watch(worker)


async def test_a_worker_that_answers_is_left_alone(autojump_clock):
    worker = Worker()
    with trio.move_on_after(1000) as scope:
        await watched(worker)
    assert scope.cancelled_caught
    assert worker.pings >= 999


async def test_one_that_stops_answering_is_given_up_after_the_limit(autojump_clock):
    worker = Worker()
    worker.answers = False
    with pytest.raises(WorkerLost, match="9 s"):
        await watched(worker)
    assert trio.current_time() == 9


async def test_one_that_stops_while_somebody_waits_is_given_up_sooner(autojump_clock):
    worker = Worker()
    worker.answers, worker.is_awaited = False, True
    with pytest.raises(WorkerLost, match="5 s"):
        await watched(worker)
    assert trio.current_time() == 5


async def test_a_long_step_that_is_waited_for_is_left_alone_as_pings_are_answered_in_it(autojump_clock):
    worker = Worker()
    worker.is_awaited, worker.silent_for = True, 60.0
    with trio.move_on_after(100) as scope:
        await watched(worker)
    assert scope.cancelled_caught


async def test_one_that_is_too_long_in_one_step_is_given_up(autojump_clock):
    worker = Worker()
    worker.silent_for = 301.0
    with pytest.raises(WorkerLost, match="one step for 301 s"):
        await watched(worker)


async def test_a_pause_of_our_own_is_not_the_workers_silence(mock_clock):
    """After a suspended or stalled daemon goes on, its answers lie unread; a healthy worker was killed for that."""
    worker = Worker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched, worker)
        await wait_all_tasks_blocked()
        worker.heard = False  # the answer to the first ping has come, and nobody has read it
        mock_clock.jump(100)
        await wait_all_tasks_blocked()
        mock_clock.jump(3)
        await wait_all_tasks_blocked()
        assert worker.pings == 3
        nursery.cancel_scope.cancel()
