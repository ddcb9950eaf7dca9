"""One supervised child: runs incarnation after incarnation under its restart policy until it is told to stop."""

import random
from collections import deque
from collections.abc import Callable

import attrs
import structlog
import trio

from meshnode.errors import ConfigError, Fatal, MeshnodeError
from meshnode.flow.deadlines import Budget
from meshnode.supervise.causes import describe, leaves
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import (
    ChildSpec,
    ChildState,
    Criticality,
    Pulse,
    Status,
    Subsystem,
    SubsystemFailed,
)

__all__ = ["Child", "Failure", "PulseLost", "StartTimedOut", "UnexpectedExit"]

Failure = SubsystemFailed | Fatal | ConfigError
"""Why a tree ends: a child failed for good, said so itself, or found at its first start that a setting cannot hold."""

_OBEDIENT = 0.1  # seconds: even with the stop budget spent, a child that ends when it is told to is not called stuck

_log = structlog.get_logger(__name__)


class UnexpectedExit(MeshnodeError):
    """A subsystem's `run` returned although nobody had asked it to stop."""

    code = "unexpected_exit"


class StartTimedOut(MeshnodeError):
    """A subsystem did not say that it was ready within its start timeout."""

    code = "start_timed_out"


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
    last_error: str | None = attrs.field(default=None, init=False)
    settled: trio.Event = attrs.field(factory=trio.Event, init=False)  # the first start succeeded or failed
    finished: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stopping: bool = attrs.field(default=False, init=False)
    _scope: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True), init=False)
    _draining: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _subsystem: Subsystem | None = attrs.field(default=None, init=False)
    _failures: deque[float] = attrs.field(factory=deque, init=False)

    def state(self) -> ChildState:
        """Return a snapshot."""
        return ChildState(self.spec.name, self.spec.criticality, self.status, self.restarts, self.last_error)

    def is_beating(self) -> bool:
        """Whether its main loop goes round, as far as its pulse tells. Between incarnations the supervisor vouches for it."""
        pulse = self.spec.pulse
        return pulse is None or self.status is not Status.RUNNING or pulse.age() <= self.spec.pulse_limit

    async def keep(self) -> None:
        """Run the child until `stop`. Shielded: cancellation from outside does not reach it.

        Raises a Failure when it cannot go on and that matters to the tree.
        """
        failure: Failure | None = None
        try:
            with self._scope:
                failure = await self._keep_running()
        except Exception as error:  # noqa: BLE001  # the supervisor's rim; only the scope has told our Cancelled from the rest
            if self._stopping:
                self._log_error("error while stopping", error)
            else:  # our own code failed; without this the child would be gone and the tree would think it well
                failure = SubsystemFailed(f"{self.spec.name} can no longer be supervised: {describe(error)}")
                failure.__cause__ = error
        finally:
            self._draining.cancel()  # nobody is left to drain
            self.status = Status.STOPPED if failure is None else Status.FAILED
            self.settled.set()
            self.finished.set()
        if failure is not None:
            raise failure

    def begin_stop(self) -> None:
        """Start no further incarnation. The present one goes on until `stop`."""
        self._stopping = True
        if self.status in (Status.BACKING_OFF, Status.RESTING):
            self._scope.cancel()

    def hurry(self) -> None:
        """End the draining now, or skip it."""
        self._draining.cancel()

    async def stop(self, budget: Budget) -> None:
        """Drain, cancel and wait, each within its deadline and the budget; a child that will not end is left behind."""
        if self.finished.is_set():
            return
        running, self.status = self.status is Status.RUNNING, Status.STOPPING
        if running and self._subsystem is not None and not self._draining.cancel_called:
            await self._drain(self._subsystem, budget.share(self.spec.drain_timeout))
        self._scope.cancel()
        with trio.move_on_after(max(_OBEDIENT, budget.share(self.spec.stop_timeout))):
            await self.finished.wait()
        if not self.finished.is_set():
            self.status = Status.STUCK
            _log.error("subsystem stuck", subsystem=self.spec.name, stop_timeout=self.spec.stop_timeout)

    async def _drain(self, subsystem: Subsystem, seconds: float) -> None:
        if seconds <= 0:
            return
        self._draining.deadline = trio.current_time() + seconds
        try:
            with self._draining:
                await subsystem.drain()
        except Exception as error:  # noqa: BLE001  # the supervisor's rim: a failing drain must not stop the stop
            self._log_error("drain failed", error)
        if self._draining.cancelled_caught:
            _log.warning("drain cut short", subsystem=self.spec.name, drain_timeout=self.spec.drain_timeout)

    async def _keep_running(self) -> Failure | None:
        """Run incarnations; return why the tree must stop, or None if a crash came while it was stopping."""
        while True:
            try:
                await self._incarnation()
            except Exception as error:  # noqa: BLE001  # the supervisor's rim: any crash of a subsystem ends here
                if self._stopping:
                    self._log_error("error while stopping", error)
                    return None
                failure: Failure | None = self._refusal(error)
                if failure is None:
                    self._log_error("subsystem crashed", error)
                    failure = self._judge(error)
                if failure is not None:
                    return failure
            self.settled.set()
            await trio.sleep(self._pause())
            self.restarts += 1

    async def _incarnation(self) -> None:
        """Run one incarnation until it crashes. Cancellation is how it is told to stop."""
        self.status = Status.STARTING
        try:
            self._subsystem = self.spec.build()
            async with trio.open_nursery() as nursery:
                await self._start(self._subsystem, nursery)
                self.status = Status.RUNNING
                self.health.clear_condition("subsystem_failed", self.spec.name)
                self.settled.set()
                if self.spec.pulse is not None:
                    nursery.start_soon(self._watch_pulse, self.spec.pulse, self.spec.pulse_limit)
        finally:
            self._subsystem = None
            self.health.clear_condition("pulse_silent", self.spec.name)

    async def _start(self, subsystem: Subsystem, nursery: trio.Nursery) -> None:
        with trio.move_on_after(self.spec.start_timeout) as starting:
            await nursery.start(self._serve, subsystem)
        if starting.cancelled_caught:
            raise StartTimedOut(f"{self.spec.name} was not ready within {self.spec.start_timeout:g} s")

    async def _serve(self, subsystem: Subsystem, *, task_status: trio.TaskStatus[None]) -> None:
        await subsystem.run(task_status=task_status)
        if self._stopping:  # it has drained and gone home early; `stop` cancels us next
            await trio.sleep_forever()
        raise UnexpectedExit(f"{self.spec.name} ended although nobody had asked it to")

    async def _watch_pulse(self, pulse: Pulse, limit: float) -> None:
        pulse.touch()
        while True:
            await trio.sleep(limit / 4)
            age = pulse.age()
            if age > 3 * limit:
                raise PulseLost(f"{self.spec.name} has not gone round its main loop for {age:.0f} s")
            if age > limit:
                text = f"{self.spec.name} has been silent for {age:.0f} s; it is restarted after {3 * limit:.0f} s"
                self.health.raise_condition("pulse_silent", self.spec.name, text)
            else:
                self.health.clear_condition("pulse_silent", self.spec.name)

    def _refusal(self, error: Exception) -> ConfigError | None:
        """Return what a setting of the first start is refused for: no crash, so nobody needs its traceback."""
        if self.settled.is_set() or self.spec.criticality is not Criticality.CRITICAL:
            return None
        causes = list(leaves(error))
        wrong = [cause for cause in causes if isinstance(cause, ConfigError)]
        if len(wrong) < len(causes):
            return None
        self.last_error = describe(error)
        return wrong[0]

    def _judge(self, error: Exception) -> Failure | None:
        """Count a crash; return why the tree must stop, or None if the child may try again."""
        name, policy, text = self.spec.name, self.spec.restart, describe(error)
        critical = self.spec.criticality is Criticality.CRITICAL
        self.last_error = text
        self.on_crash(name)
        fatal = next((leaf for leaf in leaves(error) if isinstance(leaf, Fatal)), None)
        if fatal is not None:
            return fatal
        failure: SubsystemFailed | None = None
        if critical and not self.settled.is_set():
            failure = SubsystemFailed(f"{name} could not start: {text}")
        else:
            now = trio.current_time()
            self._failures.append(now)
            while self._failures[0] <= now - policy.period:
                self._failures.popleft()
            crashes = len(self._failures)
            if critical and crashes > policy.max_restarts:
                failure = SubsystemFailed(f"{name} crashed {crashes} times within {policy.period:g} s: {text}")
        if failure is not None:
            failure.__cause__ = error
        return failure

    def _pause(self) -> float:
        """Return the seconds until the next incarnation: a growing pause, or a rest once the budget is spent."""
        policy, crashes = self.spec.restart, len(self._failures)
        if crashes > policy.max_restarts:
            self.status = Status.RESTING
            self._failures.clear()
            text = f"{self.spec.name} keeps crashing ({self.last_error}); it tries again in {self.spec.cooldown:g} s"
            self.health.raise_condition("subsystem_failed", self.spec.name, text)
            return self.spec.cooldown
        self.status = Status.BACKING_OFF
        return min(policy.backoff_max, policy.backoff_initial * 2.0 ** (crashes - 1)) * self.rng.uniform(0.8, 1.2)

    def _log_error(self, event: str, error: Exception) -> None:
        _log.error(event, subsystem=self.spec.name, error=describe(error), exc_info=error)
