"""The last resort at shutdown: a nursery waits for a task that will not die, so a thread does not.

`arm` starts a daemon thread that, unless disarmed in time, prints what hangs and ends the process with exit code 70.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

__all__ = ["STUCK_EXIT_CODE", "ShutdownWatchdog", "give_up", "task_tree", "thread_stacks"]

STUCK_EXIT_CODE = 70  # EX_SOFTWARE
_TRIO = str(Path(trio.__file__).parent)


def task_tree(root: trio.lowlevel.Task | None) -> str:
    """Return the tasks below `root`, one per line, indented by nursery depth, each with its innermost frame above trio's."""
    lines: list[str] = []

    def walk(task: trio.lowlevel.Task, depth: int) -> None:
        frames = list(task.iter_await_frames())
        ours = [(frame.f_code, line) for frame, line in frames if not frame.f_code.co_filename.startswith(_TRIO)]
        at = f"  in {ours[-1][0].co_qualname}, {ours[-1][0].co_filename}:{ours[-1][1]}" if ours else ""
        lines.append(f"{'  ' * depth}{task.name}{at}")
        for nursery in list(task.child_nurseries):
            for child in list(nursery.child_tasks):
                walk(child, depth + 1)

    if root is not None:
        walk(root, 0)
    return "\n".join(lines)


def thread_stacks() -> str:
    """Return the stack of every thread: a loop that hangs outside any await shows here and not in the task tree."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()  # the documented way to another thread's stack
    )


def give_up(reason: str, root: trio.lowlevel.Task | None, end: Callable[[int], object]) -> None:
    """Print what hangs, and end the process whatever happens while that is printed: the tree changes under our feet."""
    try:
        sys.stderr.write(f"meshnode: {reason}; these tasks are left:\n{task_tree(root)}\n{thread_stacks()}\n")
        sys.stderr.flush()
    finally:
        end(STUCK_EXIT_CODE)


@attrs.define(eq=False)
class ShutdownWatchdog:
    """Ends the process with STUCK_EXIT_CODE if `seconds` of real time pass between `arm` and `disarm`."""

    seconds: float = 28.0  # after the supervisor's budget of 25 s, and before the 30 s that systemd is told to wait
    end: Callable[[int], object] = os._exit
    _disarmed: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)

    def arm(self) -> None:
        """Start counting; a second call changes nothing. Call it from within trio."""
        if self._thread is None:
            root = trio.lowlevel.current_root_task()
            self._thread = threading.Thread(target=self._watch, args=(root,), name="shutdown-watchdog", daemon=True)
            self._thread.start()

    def disarm(self) -> None:
        """Stop counting and wait for the thread to be gone; without `arm` before, nothing happens."""
        self._disarmed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, root: trio.lowlevel.Task | None) -> None:
        if not self._disarmed.wait(self.seconds):
            give_up(f"still running {self.seconds:g} s after it began to stop", root, self.end)
