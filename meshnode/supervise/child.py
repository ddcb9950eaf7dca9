"""One supervised child: runs incarnation after incarnation under its restart policy until told to stop."""

import random
from collections import deque
from collections.abc import Callable

import attrs
import structlog
import trio

from meshnode.errors import Fatal, MeshnodeError
from meshnode.flow.deadlines import Budget
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, ChildState, Criticality, Status, Subsystem, SubsystemFailed

__all__ = ["Child", "PulseLost", "UnexpectedExit"]

_log = structlog.get_logger(__name__)


class UnexpectedExit(MeshnodeError):
    """A subsystem's `run` returned although nobody had asked it to stop."""

    code = "unexpected_exit"


class PulseLost(MeshnodeError):
    """A subsystem's main loop has not gone round for three times its limit."""

    code = "pulse_lost"


@attrs.define(eq=False)
class Child:
    """The task around one child. Everything below it is gone when `keep` returns."""

    spec: ChildSpec
    health: HealthBoard
    rng: random.Random
    on_crash: Callable[[str], None]
    status: Status = attrs.field(default=Status.WAITING, init=False)
    restarts: int = attrs.field(default=0, init=False)
    last_error: BaseException | None = attrs.field(default=None, init=False)
    finished: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stop: trio.Event = attrs.field(factory=trio.Event, init=False)
    _scope: trio.CancelScope | None = attrs.field(default=None, init=False)
    _subsystem: Subsystem | None = attrs.field(default=None, init=False)
    _failures: deque[float] = attrs.field(factory=deque, init=False)

    def state(self) -> ChildState:
        """Return a snapshot."""
        error = None if self.last_error is None else _describe(self.last_error)
        return ChildState(self.spec.name, self.spec.criticality, self.status, self.restarts, error)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the child until `stop`; shielded, so that only `stop` ends it.

        Says started when the first incarnation is ready or, for a non-critical child, has failed. Raises SubsystemFailed or
        Fatal when a critical child cannot go on.
        """
        reported = False

        def report() -> None:
            nonlocal reported
            if not reported:
                reported = True
                task_status.started()

        try:
            with trio.CancelScope(shield=True):
                while not self._stop.is_set():
                    error = await self._incarnation(report)
                    if error is None:
                        return
                    pause = self._judge(error, first_start=not reported)
                    report()
                    with trio.move_on_after(pause):
                        await self._stop.wait()
        finally:
            self.status = Status.STOPPED
            self.finished.set()

    async def stop(self, budget: Budget, urgent: trio.Event) -> None:
        """Drain, cancel and wait, each within its deadline and the budget; a child that will not end is left behind.

        `urgent` cuts the draining short.
        """
        running, self.status = self.status is Status.RUNNING, Status.STOPPING
        if running and self._subsystem is not None and self.spec.drain_timeout > 0 and not urgent.is_set():
            await self._drain(self._subsystem, budget, urgent)
        self._stop.set()
        if self._scope is not None:
            self._scope.cancel()
        with trio.move_on_after(budget.share(self.spec.stop_timeout)) as waited:
            await self.finished.wait()
        if waited.cancelled_caught and not self.finished.is_set():
            _log.error("subsystem stuck", subsystem=self.spec.name, stop_timeout=self.spec.stop_timeout)

    async def _drain(self, subsystem: Subsystem, budget: Budget, urgent: trio.Event) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = trio.current_time() + budget.share(self.spec.drain_timeout)

                async def hurry() -> None:
                    await urgent.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(hurry)
                await subsystem.drain()
                nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  # the supervisor's rim: a failing drain must not stop the stop
            _log.error("drain failed", subsystem=self.spec.name, error=_describe(error), exc_info=error)

    async def _incarnation(self, report: Callable[[], None]) -> Exception | None:
        """Run one incarnation; return how it crashed, or None if it was told to stop."""
        self.status = Status.STARTING
        try:
            with trio.CancelScope(shield=True) as self._scope:
                self._subsystem = self.spec.build()
                async with trio.open_nursery() as nursery:
                    with trio.fail_after(self.spec.start_timeout):
                        await nursery.start(self._serve, self._subsystem)
                    self.status = Status.RUNNING
                    self.health.clear_condition("subsystem_failed", self.spec.name)
                    report()
                    if self.spec.pulse is not None:
                        nursery.start_soon(self._watch_pulse)
        except Exception as error:  # noqa: BLE001  # the supervisor's rim: any crash of a subsystem ends here
            if not self._stop.is_set():
                return error
            _log.error("error while stopping", subsystem=self.spec.name, error=_describe(error), exc_info=error)
        finally:
            self._subsystem = None
            self.health.clear_condition("pulse_silent", self.spec.name)
        return None

    async def _serve(self, subsystem: Subsystem, *, task_status: trio.TaskStatus[None]) -> None:
        await subsystem.run(task_status=task_status)
        raise UnexpectedExit(f"{self.spec.name} ended although nobody had asked it to")

    async def _watch_pulse(self) -> None:
        pulse, limit = self.spec.pulse, self.spec.pulse_limit
        assert pulse is not None
        pulse.touch()
        while True:
            await trio.sleep(limit / 2)
            age = pulse.age()
            if age > 3 * limit:
                raise PulseLost(f"{self.spec.name} has not gone round its main loop for {age:.0f} s")
            if age > limit:
                text = f"{self.spec.name} has been silent for {age:.0f} s; it is restarted after {3 * limit:.0f} s"
                self.health.raise_condition("pulse_silent", self.spec.name, text)
            else:
                self.health.clear_condition("pulse_silent", self.spec.name)

    def _judge(self, error: Exception, *, first_start: bool) -> float:
        """Count a crash and return the pause before the next incarnation; raise when there is none."""
        self.last_error = error
        critical = self.spec.criticality is Criticality.CRITICAL
        fatal = _fatal_in(error)
        if fatal is not None:
            raise fatal
        if critical and first_start:
            raise SubsystemFailed(f"{self.spec.name} could not start: {_describe(error)}") from error
        self.restarts += 1
        self.on_crash(self.spec.name)
        now, policy = trio.current_time(), self.spec.restart
        self._failures.append(now)
        while self._failures[0] <= now - policy.period:
            self._failures.popleft()
        _log.error("subsystem crashed", subsystem=self.spec.name, error=_describe(error), exc_info=error)
        if len(self._failures) <= policy.max_restarts:
            self.status = Status.BACKING_OFF
            pause = min(policy.backoff_max, policy.backoff_initial * 2.0 ** (len(self._failures) - 1))
            return pause * self.rng.uniform(0.8, 1.2)
        if critical:
            raise SubsystemFailed(
                f"{self.spec.name} crashed {len(self._failures)} times within {policy.period:.0f} s: {_describe(error)}"
            ) from error
        self.status = Status.RESTING
        self._failures.clear()
        text = f"{self.spec.name} keeps crashing ({_describe(error)}); it tries again in {self.spec.cooldown:.0f} s"
        self.health.raise_condition("subsystem_failed", self.spec.name, text)
        return self.spec.cooldown


def _fatal_in(error: BaseException) -> Fatal | None:
    if isinstance(error, Fatal):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _fatal_in(inner)) is not None), None)
    return None


def _describe(error: BaseException) -> str:
    """Name the first leaf of a group: the group itself says nothing."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
