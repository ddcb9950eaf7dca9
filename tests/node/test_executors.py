"""What workers hold is measured while they hold it, and their restarts are counted."""

import pytest
import trio

from meshnode.engine.process_executor import ProcessExecutor
from meshnode.node.executors import Executors
from meshnode.observe.metrics import Metrics
from meshnode.types.blocks import BlockRange


@pytest.fixture
def spec():
    class Spec:  # nothing of a spec is looked at before a worker starts
        model, blocks = "model", BlockRange(0, 1)

    return Spec()


async def test_bytes_are_measured_from_ready_to_the_end_of_the_worker(spec, monkeypatch):
    metrics = Metrics()

    def value(name):
        return metrics.registry.get_sample_value(f"meshnode_engine_{name}")

    async def run(self, *, task_status):
        self._on_ready(100, 10)
        task_status.started()
        await trio.sleep_forever()

    monkeypatch.setattr(ProcessExecutor, "run", run)
    executors = Executors(metrics, 64)
    executor, other = executors.build(spec), executors.build(spec)
    for restarts in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(executor.run)
            await nursery.start(other.run)
            assert (value("weight_bytes"), value("cache_bytes")) == (200, 20)
            assert value("worker_restarts_total") == 2 * restarts
            nursery.cancel_scope.cancel()
        assert (value("weight_bytes"), value("cache_bytes")) == (0, 0)


def test_a_step_is_never_larger_than_the_settings_say(spec):
    limits = Executors(Metrics(), 64).build(spec)._limits
    assert (limits.prefill_alone, limits.prefill_mixed) == (64, 64)
    limits = Executors(Metrics(), 512).build(spec)._limits
    assert (limits.prefill_alone, limits.prefill_mixed) == (512, 128)
