"""Notices a loop that goes round no more while the node runs: a service manager would, and most nodes have none.

A task counts, and a thread looks whether it does. The thread counts its own looks and no time, so that a process that was
stopped for an hour, and goes on, is not taken for one that hung.
"""

import os
import threading
from collections.abc import Callable

import attrs
import trio

from meshnode.supervise.watchdog import give_up

__all__ = ["StuckLoop"]

_LOOKS = 12  # of the thread, until it gives up; the task counts twice between two


@attrs.define(eq=False)
class StuckLoop:
    """Ends the process with STUCK_EXIT_CODE when the loop has stood still for `seconds`."""

    seconds: float = 60.0  # a step over 0.05 s is a bug already, but a machine may swap
    end: Callable[[int], object] = os._exit
    pause: Callable[[float], bool] | None = None  # says whether it is over; tests have time of their own
    _over: threading.Event = attrs.field(factory=threading.Event, init=False)
    _rounds: int = attrs.field(default=0, init=False)

    async def run(self) -> None:
        """Count until cancelled; then the thread ends by itself."""
        root = trio.lowlevel.current_root_task()
        threading.Thread(target=self._watch, args=(root,), name="stuck-loop", daemon=True).start()
        try:
            while True:
                await trio.sleep(self.seconds / _LOOKS / 2)
                self._rounds += 1
        finally:
            self._over.set()

    def _watch(self, root: trio.lowlevel.Task | None) -> None:
        pause, seen, silent = self.pause or self._over.wait, 0, 0
        while not pause(self.seconds / _LOOKS):
            seen, silent = self._rounds, silent + 1 if self._rounds == seen else 0
            if silent >= _LOOKS:
                return give_up(f"the loop has not gone round for {self.seconds:g} s", root, self.end)
        return None
