"""The supervisor: starts children in order, keeps them running, stops them in reverse.

A request to stop, cancellation from outside and the failure of a critical child all take the same path. Children are shielded,
else cancellation would reach all of them at once, and the API could not finish a stream that needs the router.
"""

import random
from collections.abc import Callable, Sequence

import trio

from meshnode.flow.deadlines import Budget
from meshnode.supervise.child import Child
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, ChildState

__all__ = ["Supervisor"]


def _ignore(_name: str) -> None:
    return


class Supervisor:
    """Supervises the children of one level."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        health: HealthBoard,
        rng: random.Random | None = None,
        total_stop_budget: float = 25.0,  # seconds for all drains and stops together
        on_crash: Callable[[str], None] = _ignore,  # hears the name of every child that crashed
    ) -> None:
        source = rng or random.Random()  # noqa: S311  # jitter, not secrets
        self._children = [Child(spec, health, source, on_crash) for spec in specs]
        self._total_stop_budget = total_stop_budget
        self._stop_requested = trio.Event()
        self._urgent = trio.Event()

    def states(self) -> tuple[ChildState, ...]:
        """Return a snapshot of every child, in start order."""
        return tuple(child.state() for child in self._children)

    def request_stop(self, *, urgent: bool = False) -> None:
        """Ask `run` to stop the children and return; `urgent` ends draining at once. May be called again."""
        self._stop_requested.set()
        if urgent:
            self._urgent.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the children, say started, and keep them until a stop is asked for.

        Cancellation stops the children in reverse order, with their drain and stop times, before it goes on. Raises
        SubsystemFailed or Fatal when a critical child fails, after the others have been stopped.
        """
        started: list[Child] = []
        try:
            async with trio.open_nursery() as nursery:
                try:
                    for child in self._children:
                        if self._stop_requested.is_set():
                            break
                        started.append(child)
                        await nursery.start(child.keep)
                    else:
                        task_status.started()
                        await self._stop_requested.wait()
                finally:
                    await self._stop_all(started)
        except BaseExceptionGroup as group:
            # One cause leaves, and an interrupt before any other: the nursery's group would only wrap it.
            cause = next((error for error in group.exceptions if not isinstance(error, Exception)), group.exceptions[0])
            raise cause from cause.__cause__

    async def _stop_all(self, started: list[Child]) -> None:
        with trio.CancelScope(shield=True):
            budget = Budget.of(self._total_stop_budget)
            for child in reversed(started):
                await child.stop(budget, self._urgent)
