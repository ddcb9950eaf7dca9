"""What a supervised child is, and the policy it is supervised by."""

import enum
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from meshnode.errors import MeshnodeError

__all__ = ["ChildSpec", "ChildState", "Criticality", "Pulse", "RestartPolicy", "Status", "Subsystem", "SubsystemFailed"]


class Subsystem(Protocol):
    """One incarnation of a child; a restart builds a fresh one."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Call task_status.started() once ready to be used."""
        ...

    async def drain(self) -> None:
        """Refuse new work; return when the work in hand is done. Bounded by drain_timeout, then cancelled."""
        ...


class Criticality(enum.Enum):
    """What a spent restart budget means."""

    CRITICAL = "critical"  # the tree is stopped
    NON_CRITICAL = "non_critical"  # the child rests, and then tries again


@attrs.frozen
class RestartPolicy:
    """OTP's intensity and period, with a growing pause between attempts. Times in seconds."""

    max_restarts: int = 5
    period: float = 30.0
    backoff_initial: float = 0.2  # doubles with every failure in the window, +-20 %
    backoff_max: float = 10.0


@attrs.define(eq=False)
class Pulse:
    """The stamp a subsystem's main loop touches to show that it works, not only lives."""

    _at: float | None = attrs.field(default=None, init=False)

    def touch(self) -> None:
        """Say that the loop went round."""
        self._at = trio.current_time()

    def age(self) -> float:
        """Return the seconds since the last touch; 0 before the first."""
        return 0.0 if self._at is None else trio.current_time() - self._at


@attrs.frozen
class ChildSpec:
    """One child and its policy. Times in seconds."""

    name: str
    build: Callable[[], Subsystem]  # a fresh object for every incarnation
    criticality: Criticality = Criticality.NON_CRITICAL
    restart: RestartPolicy = RestartPolicy()
    start_timeout: float = 30.0
    drain_timeout: float = 0.0
    stop_timeout: float = 5.0
    cooldown: float = 300.0  # non-critical: rest after a spent budget, then try again
    pulse: Pulse | None = None
    pulse_limit: float = 30.0  # silence above it is a condition, above three times it a crash


class Status(enum.Enum):
    """Where a child is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    RESTING = "resting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"  # for good: the tree stops because of it
    STUCK = "stuck"  # would not end within its stop timeout


@attrs.frozen
class ChildState:
    """A snapshot of one child."""

    name: str
    criticality: Criticality
    status: Status
    restarts: int
    last_error: str | None

    @property
    def is_ready(self) -> bool:
        """Whether the child can be used now."""
        return self.status is Status.RUNNING


class SubsystemFailed(MeshnodeError):
    """A critical child failed its first start or spent its restart budget; the cause is chained."""

    code = "subsystem_failed"
