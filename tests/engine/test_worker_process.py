"""The process around a worker, with small scripts in the place of the worker."""

import os
import signal
import socket
import sys
import threading

import psutil
import pytest
import structlog.testing
import trio

from meshnode.engine.worker_process import WorkerProcess
from meshnode.errors import EngineError

pytestmark = pytest.mark.processes


def start(script):
    ours, theirs = socket.socketpair()
    with theirs:
        return ours, WorkerProcess.start(theirs.fileno(), [sys.executable, "-c", script])


async def outcome(script):
    ours, process = start(script)
    with ours, structlog.testing.capture_logs() as logs:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.log_errors)
                ended = await process.last_words()
                nursery.cancel_scope.cancel()
        finally:
            await process.end()
    return ended, [entry["line"] for entry in logs if entry["event"] == "worker says"]


async def test_the_parent_is_the_thread_of_the_loop():
    """The kernel kills a worker when the *thread* that started it ends; a thread from trio's pool ends after 10 idle s.

    A worker started from such a thread died ten seconds after every start. The signal itself cannot be waited for in a
    test that does not sleep, so this looks at whose child the process is.
    """
    ours, process = start("import time; time.sleep(60)")
    with ours:
        try:
            children = trio.Path(f"/proc/self/task/{threading.get_native_id()}/children")
            if not await children.exists():
                pytest.skip("this kernel does not list the children of a thread")
            assert str(process._popen.pid) in (await children.read_text()).split()
        finally:
            await process.end()


async def test_what_it_says_last_is_logged_and_how_it_ended_is_known():
    ended, lines = await outcome("import sys; print('to stdout'); sys.exit('cannot go on')")
    assert ended == "exit code 1"
    assert sorted(lines) == ["cannot go on", "to stdout"]


async def test_a_signal_is_named():
    assert (await outcome("import os; os.kill(os.getpid(), 11)"))[0] == "killed by SIGSEGV"


async def test_a_line_without_an_end_and_a_long_one_are_kept_within_bounds():
    _, lines = await outcome("import sys; sys.stderr.write('x' * 9000 + chr(10) + 'no newline')")
    assert [len(line) for line in lines] == [2000, len("no newline")]


async def test_ending_leaves_no_process_even_if_it_is_frozen():
    ours, process = start("import time; time.sleep(60)")
    with ours:
        pid = process._popen.pid
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        with trio.fail_after(10):
            await process.end()
    assert not psutil.pid_exists(pid)


async def test_it_is_out_of_reach_of_the_terminal():
    ours, process = start("import time; time.sleep(60)")
    with ours:
        try:
            assert os.getpgid(process._popen.pid) != os.getpgid(0)
        finally:
            await process.end()


async def test_a_command_that_cannot_be_started_is_an_error_that_says_so():
    with pytest.raises(EngineError, match="could not be started"):
        WorkerProcess.start(0, ["/nowhere/at/all"])
