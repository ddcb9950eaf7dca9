"""A step of the loop that takes too long is logged with its task and counted; other steps are not."""

import structlog
import trio

from meshnode.observe.loop_stalls import LOOP_STEP_LIMIT, LoopStalls
from meshnode.observe.metrics import Metrics


class _Clock:
    now = 0.0

    def __call__(self):
        return self.now


def _run(main, clock):
    metrics = Metrics()
    with structlog.testing.capture_logs() as logs:
        trio.run(main, instruments=[LoopStalls(metrics.supervise_loop_stalls_total, clock=clock)])
    return logs, metrics.registry.get_sample_value("meshnode_supervise_loop_stalls_total")


def test_a_long_step_is_logged_with_its_task_and_counted():
    clock = _Clock()

    async def slow():
        clock.now += 0.2
        await trio.lowlevel.checkpoint()

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow, name="slow one")

    logs, count = _run(main, clock)
    assert count == 1
    (record,) = logs
    assert record["task"] == "slow one"
    assert record["milliseconds"] == 200
    assert "test_loop_stalls.py" in record["until"]


def test_the_last_step_of_a_task_counts_too():
    clock = _Clock()

    async def main():
        await trio.lowlevel.checkpoint()
        clock.now += 0.2

    logs, count = _run(main, clock)
    assert count == 1
    assert logs[0]["until"] == "ended"


def test_many_short_steps_are_not_a_stall():
    clock = _Clock()

    async def main():
        for _ in range(100):
            clock.now += LOOP_STEP_LIMIT
            await trio.lowlevel.checkpoint()
            clock.now = 0.0

    logs, count = _run(main, clock)
    assert count == 0
    assert logs == []
