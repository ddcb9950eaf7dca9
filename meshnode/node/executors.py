"""Makes the executors of stages, and measures what their workers hold."""

from collections.abc import Callable

import attrs
import trio

from meshnode.engine.executor import StageSpec
from meshnode.engine.process_executor import ProcessExecutor
from meshnode.engine.worker_messages import BatchLimits
from meshnode.observe.metrics import Metrics

__all__ = ["Executors"]

_MIXED_CHUNK = 128  # prompt tokens in a step that others wait for


class _MeasuredExecutor(ProcessExecutor):
    """Says when what its worker held is free again."""

    def __init__(
        self, spec: StageSpec, limits: BatchLimits, ready: Callable[[int, int], None], gone: Callable[[], None]
    ) -> None:
        super().__init__(spec, limits=limits, on_ready=ready)
        self._gone = gone

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See ProcessExecutor.run."""
        try:
            await super().run(task_status=task_status)
        finally:
            self._gone()


@attrs.define(eq=False)
class Executors:
    """The factory of stage executors: a worker process for each."""

    _metrics: Metrics
    _prefill_chunk: int  # prompt tokens in one step
    _held: dict[object, tuple[int, int]] = attrs.field(factory=dict, init=False)  # bytes of weights and of caches

    def build(self, spec: StageSpec) -> ProcessExecutor:
        """Make the executor of a stage; its worker starts when it is run."""
        owner, starts = object(), 0

        def ready(weight_bytes: int, cache_bytes: int) -> None:
            nonlocal starts
            starts += 1
            if starts > 1:
                self._metrics.engine_worker_restarts_total.inc()
            self._measure(owner, (weight_bytes, cache_bytes))

        limits = BatchLimits(self._prefill_chunk, min(self._prefill_chunk, _MIXED_CHUNK))
        return _MeasuredExecutor(spec, limits, ready, lambda: self._measure(owner, (0, 0)))

    def _measure(self, owner: object, held: tuple[int, int]) -> None:
        self._held[owner] = held
        if held == (0, 0):
            del self._held[owner]
        self._metrics.engine_weight_bytes.set(sum(weights for weights, _ in self._held.values()))
        self._metrics.engine_cache_bytes.set(sum(caches for _, caches in self._held.values()))
