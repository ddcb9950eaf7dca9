"""The shutdown watchdog ends a process that does not end by itself."""

import threading

import trio

from meshnode.supervise.watchdog import STUCK_EXIT_CODE, shutdown_watchdog, task_tree


async def test_it_dumps_the_tasks_and_ends_the_process(capsys):
    ended = threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    async def culprit():
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(culprit)
        await trio.testing.wait_all_tasks_blocked()
        with shutdown_watchdog(0.01, trio.lowlevel.current_root_task(), end):
            await trio.to_thread.run_sync(ended.wait, 10)
        nursery.cancel_scope.cancel()
    assert codes == [STUCK_EXIT_CODE]
    assert "culprit" in capsys.readouterr().err


async def test_it_does_nothing_when_left_in_time():
    codes = []
    with shutdown_watchdog(60, None, codes.append):
        watchers = [thread for thread in threading.enumerate() if thread.name == "shutdown-watchdog"]
    for thread in watchers:
        await trio.to_thread.run_sync(thread.join, 10)
    assert not any(thread.is_alive() for thread in watchers)
    assert codes == []


def test_a_tree_without_a_root_is_empty():
    assert task_tree(None) == ""
