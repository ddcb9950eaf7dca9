"""Finds the steps of the trio loop that hold up everybody else. A step over 50 ms is a bug worth a line in the log."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import attrs
import structlog
import trio

__all__ = ["LOOP_STEP_LIMIT", "LoopStalls"]

LOOP_STEP_LIMIT = 0.05  # seconds

_TRIO = str(Path(trio.__file__).parent)
_log = structlog.get_logger(__name__)


class Tally(Protocol):
    """Something that counts; a prometheus Counter is one."""

    def inc(self) -> None:
        """Count one."""
        ...


@attrs.define(eq=False)
class LoopStalls(trio.abc.Instrument):
    """Logs and counts the task steps longer than `limit` seconds; pass it to `trio.run(instruments=[...])`."""

    counter: Tally
    limit: float = LOOP_STEP_LIMIT
    clock: Callable[[], float] = time.perf_counter
    _began: float = attrs.field(default=0.0, init=False)

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        """Note when the step began."""
        self._began = self.clock()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Report the step if it was too long, with the place at which the task now waits."""
        seconds = self.clock() - self._began
        if seconds <= self.limit:
            return
        self.counter.inc()
        _log.warning("loop stalled", task=task.name, milliseconds=round(seconds * 1000), until=_waits_at(task))


def _waits_at(task: trio.lowlevel.Task) -> str:
    """Return the innermost line that the task waits at, Trio's own apart: every wait ends in there."""
    places = [(frame.f_code.co_filename, line) for frame, line in task.iter_await_frames()]
    ours = [place for place in places if not place[0].startswith(_TRIO)]
    return "{}:{}".format(*(ours or places)[-1]) if places else "ended"
