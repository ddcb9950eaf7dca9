"""Makes the executors of stages, and measures what their workers hold."""

from collections.abc import Callable

import attrs
import trio

from meshnode.engine.executor import StageSpec
from meshnode.engine.process_executor import ProcessExecutor
from meshnode.engine.worker_messages import BatchLimits
from meshnode.errors import MeshnodeError
from meshnode.flow.periodic import Ticker
from meshnode.node.memory_plan import MemoryPlan
from meshnode.observe.metrics import Metrics

__all__ = ["Executors"]

_MIXED_CHUNK = 128  # prompt tokens in a step that others wait for
# Seconds, so that what a client held is seen to be free within one; a worker answers between two steps.
_LOOK_EVERY = 0.5


class _MeasuredExecutor(ProcessExecutor):
    """Asks for memory before each worker starts, and says when what it held is free again."""

    def __init__(
        self,
        spec: StageSpec,
        limits: BatchLimits,
        plan: MemoryPlan,
        ready: Callable[[str, int, int], None],
        gone: Callable[[], None],
    ) -> None:
        super().__init__(spec, limits=limits, on_ready=ready)
        self._asked = spec
        self._plan = plan
        self._gone = gone

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See ProcessExecutor.run."""
        try:
            self.spec = self._plan.settle(self, self._asked)
            await super().run(task_status=task_status)
        finally:
            self._gone()


@attrs.define(eq=False)
class Executors:
    """The factory of stage executors: a worker process for each."""

    _metrics: Metrics
    _prefill_chunk: int  # prompt tokens in one step
    plan: MemoryPlan = attrs.field(factory=MemoryPlan)
    _held: dict[ProcessExecutor, tuple[int, int]] = attrs.field(
        factory=dict, init=False
    )  # bytes: weights, cache budget
    _used: dict[ProcessExecutor, int] = attrs.field(factory=dict, init=False)  # bytes of caches when last looked at
    _looked_at: set[ProcessExecutor] = attrs.field(factory=set, init=False)  # right now

    def build(self, spec: StageSpec) -> ProcessExecutor:
        """Make the executor of a stage; its worker starts when it is run."""
        starts = 0

        def ready(device: str, weight_bytes: int, cache_bytes: int) -> None:
            nonlocal starts
            starts += 1
            if starts > 1:
                self._metrics.engine_worker_restarts_total.inc()
            self._held[executor] = weight_bytes, cache_bytes
            self.plan.loaded(executor, device, weight_bytes, cache_bytes)
            self._tell()

        def gone() -> None:
            self._held.pop(executor, None)
            self._used.pop(executor, None)
            self.plan.release(executor)
            self._tell()

        limits = BatchLimits(self._prefill_chunk, min(self._prefill_chunk, _MIXED_CHUNK))
        executor = _MeasuredExecutor(spec, limits, self.plan, ready, gone)
        return executor

    async def watch(self) -> None:
        """Look at what the caches hold, again and again, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for _ in Ticker(_LOOK_EVERY):
                # One in a long step is waited for, and hides no other.
                for executor in self._held.keys() - self._looked_at:
                    self._looked_at.add(executor)
                    nursery.start_soon(self._look, executor)

    async def _look(self, executor: ProcessExecutor) -> None:
        try:
            stats = await executor.stats()
        except MeshnodeError:  # it is ending; `gone` takes it away
            return
        finally:
            self._looked_at.discard(executor)
        if executor in self._held:
            self._used[executor] = stats.cache_bytes_used
            used = min(stats.cache_bytes_budget, stats.cache_bytes_used + stats.kept_bytes)
            self.plan.took(executor, used, stats.gpu_free_bytes)
            self._tell()

    def _tell(self) -> None:
        self._metrics.engine_weight_bytes.set(sum(weights for weights, _ in self._held.values()))
        self._metrics.engine_cache_budget_bytes.set(sum(budget for _, budget in self._held.values()))
        self._metrics.engine_cache_bytes.set(sum(self._used.values()))
