"""Runs a Python module as a child process that ends when its parent does, however the parent ends.

Started as `python -P tethered.py MODULE ARGUMENT...` in a process group of its own, with a pipe for standard input that the
parent never writes to. When the parent goes, even by SIGKILL, the pipe closes, and the child kills its group.
(Linux's PR_SET_PDEATHSIG would not do: it fires when the parent's *thread* ends, and trio starts processes from passing ones.)
"""

import os
import runpy
import signal
import sys
import threading

__all__: list[str] = []


def _watch() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_watch, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
