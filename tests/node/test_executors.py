"""What workers hold is measured while they hold it, and their restarts are counted."""

from functools import partial

import attrs
import pytest
import trio
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.config import load_config
from meshnode.engine.executor import ExecutorStats, Generation
from meshnode.engine.process_executor import ProcessExecutor
from meshnode.errors import WorkerLost
from meshnode.node import assemble
from meshnode.node.executors import Executors
from meshnode.observe.metrics import Metrics
from meshnode.supervise.watchdog import ShutdownWatchdog
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId


@pytest.fixture
def spec(monkeypatch):
    monkeypatch.setattr("meshnode.node.memory_plan.weight_bytes", lambda spec: 100)

    @attrs.frozen
    class Spec:  # nothing more of a spec is looked at before a worker starts
        model: str = "model"
        blocks: None = None
        device: str = "cuda"  # only its worker sees what is free there
        cache_bytes: int = 0

    return Spec()


async def test_bytes_are_measured_from_ready_to_the_end_of_the_worker(spec, monkeypatch):
    metrics = Metrics()

    def value(name):
        return metrics.registry.get_sample_value(f"meshnode_engine_{name}")

    async def run(self, *, task_status):
        self._on_ready("cuda:0", 100, 10)
        task_status.started()
        await trio.sleep_forever()

    monkeypatch.setattr(ProcessExecutor, "run", run)
    executors = Executors(metrics, 64)
    executor, other = executors.build(spec), executors.build(spec)
    for restarts in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(executor.run)
            await nursery.start(other.run)
            assert (value("weight_bytes"), value("cache_budget_bytes")) == (200, 20)
            assert value("worker_restarts_total") == 2 * restarts
            nursery.cancel_scope.cancel()
        assert (value("weight_bytes"), value("cache_budget_bytes")) == (0, 0)


async def test_what_caches_hold_is_looked_at_now_and_then_and_one_that_is_slow_hides_no_other(
    spec, monkeypatch, autojump_clock
):
    metrics = Metrics()
    used, busy = {}, trio.Event()

    async def run(self, *, task_status):
        self._on_ready("cuda:0", 100, 10)
        task_status.started()
        await trio.sleep_forever()

    async def stats(self):
        if isinstance(used[self], Exception):
            raise used[self]
        if self is slow:
            await busy.wait()
        return ExecutorStats(100, used[self], 10, 0, 0, 0, 0)

    monkeypatch.setattr(ProcessExecutor, "run", run)
    monkeypatch.setattr(ProcessExecutor, "stats", stats)
    executors = Executors(metrics, 64)
    quick, slow, ending = (executors.build(spec) for _ in range(3))
    used |= {quick: 3, slow: 2, ending: WorkerLost("it ended")}
    value = partial(metrics.registry.get_sample_value, "meshnode_engine_cache_bytes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executors.watch)
        for executor in used:
            await nursery.start(executor.run)
        await trio.sleep(0.6)
        assert value() == 3
        used[quick] = 1
        await trio.sleep(0.6)
        assert value() == 1
        busy.set()
        await trio.sleep(0.6)
        assert value() == 3
        nursery.cancel_scope.cancel()
    assert value() == 0


async def test_each_worker_starts_with_a_budget_and_gives_it_back(tmp_path, monkeypatch):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    spec = attrs.evolve(stage_of(manifest, tmp_path / "shards"), cache_bytes=0)
    monkeypatch.setattr("meshnode.node.memory_plan.available_bytes", lambda: 64 << 20)

    async def run(self, *, task_status):
        self._on_ready("cpu", 100, self.spec.cache_bytes)
        task_status.started()
        await trio.sleep_forever()

    monkeypatch.setattr(ProcessExecutor, "run", run)
    executors = Executors(Metrics(), 64)
    first, second = executors.build(spec), executors.build(spec)
    for _ in range(2):  # a worker that starts again asks anew
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run)
            await nursery.start(second.run)
            assert 0 < second.spec.cache_bytes < 0.6 * first.spec.cache_bytes < 32 << 20
            nursery.cancel_scope.cancel()


def test_a_step_is_never_larger_than_the_settings_say(spec):
    limits = Executors(Metrics(), 64).build(spec)._limits
    assert (limits.prefill_alone, limits.prefill_mixed) == (64, 64)
    limits = Executors(Metrics(), 512).build(spec)._limits
    assert (limits.prefill_alone, limits.prefill_mixed) == (512, 128)


@pytest.mark.processes
@pytest.mark.parametrize(("chunk", "step"), [("3", 3), ("1000", 701)])
async def test_the_worker_reads_a_prompt_in_the_steps_that_config_toml_asks_for(tmp_path, monkeypatch, chunk, step):
    made = []

    class Kept(Executors):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(assemble, "Executors", Kept)
    settings = tmp_path / "config.toml"
    settings.write_text(f"[engine]\nprefill_chunk = {chunk}\n[api]\nport = 0\n")
    loaded = load_config(flags={"node.data_dir": tmp_path / "data"}, env={}, file=settings)
    async with assemble.open_node(loaded, metrics=Metrics(), watchdog=ShutdownWatchdog()):
        (executors,) = made
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    executor = executors.build(stage_of(manifest, tmp_path / "shards", cache=64 << 20))
    request = Generation(SessionId("s"), (5,) * 701, 701, 1, SamplingParameters(temperature=0))
    read = set()
    async with trio.open_nursery() as nursery:
        await nursery.start(executor.run)
        async with executor.generate(request):
            while (stats := await executor.stats()).sessions:  # answered between two steps
                read.add(stats.prefill_tokens)
        assert (await executor.stats()).prefill_tokens == 701
        nursery.cancel_scope.cancel()
    assert {count % step for count in read - {701}} <= {0}
    assert step == 701 or read - {0, 701}  # seen on the way, not only at the ends
