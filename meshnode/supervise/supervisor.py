"""The supervisor: starts children in order, keeps them running, stops them in reverse.

A request to stop, cancellation from outside and the failure of a critical child all take the same path. Children are shielded,
else cancellation would reach all of them at once, and the API could not finish a stream that needs the router.
"""

import random
from collections.abc import Callable, Sequence

import structlog
import trio

from meshnode.errors import ConfigError, Fatal
from meshnode.flow.deadlines import Budget
from meshnode.supervise.causes import describe
from meshnode.supervise.child import Child, Failure
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, ChildState, Criticality, SubsystemFailed
from meshnode.supervise.watchdog import ShutdownWatchdog

__all__ = ["Supervisor"]

_log = structlog.get_logger(__name__)


def _ignore(_name: str) -> None:
    return


class Supervisor:
    """Supervises the children of one level. It runs once; build another one to run again."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        health: HealthBoard,
        rng: random.Random | None = None,
        total_stop_budget: float = 25.0,  # seconds for all drains and stops together
        on_crash: Callable[[str], None] = _ignore,  # hears the name of every child that crashed
        watchdog: ShutdownWatchdog | None = None,  # armed when the stop begins, however it came about
    ) -> None:
        source = rng or random.Random()  # noqa: S311  # jitter, not secrets
        self._children = [Child(spec, health, source, on_crash) for spec in specs]
        self._total_stop_budget = total_stop_budget
        self._watchdog = watchdog
        self.started = trio.Event()  # set when every child has had its first start
        self.stopping = trio.Event()  # set when the stop begins, however it came about
        self._serving = trio.CancelScope()
        self._stop_requested = False
        self._cause: Failure | None = None

    def states(self) -> tuple[ChildState, ...]:
        """Return a snapshot of every child, in start order."""
        return tuple(child.state() for child in self._children)

    def critical_pulses_beat(self) -> bool:
        """Whether no critical child has been silent for longer than its limit."""
        return all(child.is_beating() for child in self._children if child.spec.criticality is Criticality.CRITICAL)

    def request_stop(self, *, urgent: bool = False) -> None:
        """Ask `run` to stop the children and return. A second request, or an urgent one, ends all draining at once."""
        if urgent or self._stop_requested:
            for child in self._children:
                child.hurry()
        self._stop_requested = True
        self._serving.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the children, say started, and keep them until a stop is asked for.

        Cancellation stops the children in reverse order, with their drain and stop times, before it goes on. Raises a
        Failure when a child fails for good, after the others have been stopped. A stop that is asked for
        while the children still start returns without having said started.
        """
        begun: list[Child] = []
        async with trio.open_nursery() as nursery:
            try:
                with self._serving:
                    for child in self._children:
                        await trio.lowlevel.checkpoint_if_cancelled()
                        begun.append(child)
                        nursery.start_soon(self._keep, child, name=child.spec.name)
                        await child.settled.wait()
                    self.started.set()
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self._stop_all(begun)
        if self._cause is not None:
            raise self._cause

    async def _keep(self, child: Child) -> None:
        try:
            await child.keep()
        except (SubsystemFailed, Fatal, ConfigError) as failure:
            # Recorded, not raised: a nursery would wrap it in a group and mix it with what goes wrong while stopping.
            if self._cause is None:
                self._cause = failure
            self._serving.cancel()

    async def _stop_all(self, begun: Sequence[Child]) -> None:
        self.stopping.set()
        if self._watchdog is not None:
            self._watchdog.arm()
        if self._cause is not None and not isinstance(self._cause, ConfigError):
            _log.error("stopping: a subsystem failed for good", error=describe(self._cause))
        budget = Budget.of(self._total_stop_budget)
        for child in begun:
            child.begin_stop()
        for child in reversed(begun):
            await child.stop(budget)
