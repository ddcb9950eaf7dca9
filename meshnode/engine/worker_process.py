"""One operating-system process of a worker: started, listened to on standard error, and ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import attrs
import structlog
import trio

from meshnode.errors import EngineError

__all__ = ["WORKER_COMMAND", "WorkerProcess"]

_log = structlog.get_logger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "meshnode.engine.worker")
_LONGEST_LINE = 2000
_LAST_WORDS = 1.0
"""Seconds to wait for what an ending process has still to say, and for it to be gone."""


@attrs.define(eq=False)
class WorkerProcess:
    """Exists from `start` to `end`; whoever starts one must end it."""

    _popen: "subprocess.Popen[bytes]"
    _stderr: trio.lowlevel.FdStream
    _silent: trio.Event = attrs.field(factory=trio.Event, init=False)  # standard error has ended

    @classmethod
    def start(cls, descriptor: int, command: Sequence[str] = WORKER_COMMAND) -> "WorkerProcess":
        """Start a process that inherits `descriptor`. Raises EngineError when the system does not allow another process.

        Not trio.lowlevel.open_process: that starts the process from a thread that retires after ten idle seconds, and to
        Linux that thread is the parent with whose death the worker is to die. Starting takes 1 to 2 ms of the loop.
        """
        reading, writing = os.pipe()
        try:
            popen = subprocess.Popen(
                [*command, str(descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                pass_fds=[descriptor],
                # Else numpy asks for huge pages, and a KV cache takes its memory 2 MB at a time instead of as it fills.
                env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"},
                start_new_session=True,  # the terminal's Ctrl-C is for the daemon, which drains first
            )
        except OSError as error:
            os.close(reading)
            raise EngineError(f"a worker process could not be started: {error}") from error
        finally:
            os.close(writing)
        return cls(popen, trio.lowlevel.FdStream(reading))

    async def log_errors(self) -> None:
        """Put what the process says into our log, line by line, until it ends. Cancellation loses an unfinished line."""
        rest = b""
        async for data in self._stderr:
            *lines, rest = (rest + bytes(data)).split(b"\n")
            for line in lines:
                _say(line)
            rest = rest[-4096:]
        _say(rest)
        self._silent.set()

    async def last_words(self) -> str:
        """Wait, a second at most, for a process that is ending by itself, and return how it ended.

        Needs `log_errors` to run. A traceback is still on its way when the socket has already ended.
        """
        with trio.move_on_after(_LAST_WORDS):
            await self._silent.wait()
            await trio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True)
        code = self._popen.poll()
        if code is None:
            return "it closed its connection and goes on"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def end(self) -> None:
        """Kill the process and wait until its memory is free. Shielded from cancellation."""
        self._popen.kill()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._popen.wait)
            await trio.aclose_forcefully(self._stderr)


def _say(line: bytes) -> None:
    if line.strip():
        _log.warning("worker says", line=line.decode(errors="replace")[:_LONGEST_LINE])
