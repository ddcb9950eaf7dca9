"""The shutdown watchdog ends a process that does not end by itself."""

import sys
import threading

import pytest
import trio

from meshnode.supervise.watchdog import STUCK_EXIT_CODE, ShutdownWatchdog, task_tree


class _End:
    """Stands in for os._exit."""

    def __init__(self):
        self.codes = []
        self.called = threading.Event()

    def __call__(self, code):
        self.codes.append(code)
        self.called.set()


async def test_it_prints_what_hangs_and_ends_the_process(capsys):
    end = _End()
    watchdog = ShutdownWatchdog(seconds=0.0, end=end)

    async def culprit():
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(culprit)
        await trio.testing.wait_all_tasks_blocked()
        watchdog.arm()
        watchdog.arm()
        await trio.to_thread.run_sync(end.called.wait, 10)
        nursery.cancel_scope.cancel()
    watchdog.disarm()
    assert end.codes == [STUCK_EXIT_CODE]
    printed = capsys.readouterr().err
    assert "culprit" in printed
    assert "thread MainThread" in printed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_it_ends_the_process_even_if_it_cannot_print(monkeypatch):
    class Broken:
        def write(self, _text):
            raise OSError("no terminal")

    end = _End()
    monkeypatch.setattr(sys, "stderr", Broken())
    watchdog = ShutdownWatchdog(seconds=0.0, end=end)
    watchdog.arm()
    await trio.to_thread.run_sync(end.called.wait, 10)
    watchdog.disarm()
    assert end.codes == [STUCK_EXIT_CODE]


async def test_it_does_nothing_when_disarmed_in_time():
    end = _End()
    watchdog = ShutdownWatchdog(seconds=3600.0, end=end)
    watchdog.arm()
    watchdog.disarm()
    assert not [thread for thread in threading.enumerate() if thread.name == "shutdown-watchdog"]
    assert end.codes == []


def test_disarming_what_was_never_armed_is_fine():
    ShutdownWatchdog().disarm()


def test_a_tree_without_a_root_is_empty():
    assert task_tree(None) == ""
