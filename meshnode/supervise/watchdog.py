"""The last resort at shutdown: a nursery waits for a task that will not die, so a thread does not.

`arm` starts a daemon thread that, unless disarmed in time, prints the task tree and ends the process with exit code 70.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

__all__ = ["STUCK_EXIT_CODE", "shutdown_watchdog", "task_tree"]

STUCK_EXIT_CODE = 70  # EX_SOFTWARE


def task_tree(root: trio.lowlevel.Task | None) -> str:
    """Return the tasks below `root`, one per line, indented by nursery depth, each with its innermost frame."""
    lines: list[str] = []

    def walk(task: trio.lowlevel.Task, depth: int) -> None:
        frames = [f"{frame.f_code.co_filename}:{line}" for frame, line in task.iter_await_frames()]
        lines.append(f"{'  ' * depth}{task.name}  at {frames[-1] if frames else '?'}")
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                walk(child, depth + 1)

    if root is not None:
        walk(root, 0)
    return "\n".join(lines)


@contextmanager
def shutdown_watchdog(
    seconds: float, root: trio.lowlevel.Task | None, end: Callable[[int], object] = os._exit
) -> Iterator[None]:
    """End the process with STUCK_EXIT_CODE if the context is not left within `seconds` of real time."""
    disarmed = threading.Event()

    def watch() -> None:
        if not disarmed.wait(seconds):
            sys.stderr.write(f"meshnode: still running {seconds:.0f} s after it was told to stop; these tasks hang:\n")
            sys.stderr.write(task_tree(root) + "\n")
            sys.stderr.flush()
            end(STUCK_EXIT_CODE)

    threading.Thread(target=watch, name="shutdown-watchdog", daemon=True).start()
    try:
        yield
    finally:
        disarmed.set()
