"""A loop that stands still ends its process; one that goes round does not."""

import threading

import trio
import trio.testing

from meshnode.supervise.stuck_loop import StuckLoop
from meshnode.supervise.watchdog import STUCK_EXIT_CODE


async def test_a_loop_that_stands_still_is_noticed_and_its_tasks_are_named(capsys):
    codes, looks, ended = [], [], threading.Event()

    def end(code):
        codes.append(code)
        ended.set()

    watch = StuckLoop(seconds=1e6, end=end, pause=looks.append)  # no time passes for the loop

    async def culprit():
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(culprit)
        nursery.start_soon(watch.run)
        await trio.to_thread.run_sync(ended.wait, 10)
        nursery.cancel_scope.cancel()
    assert codes == [STUCK_EXIT_CODE]
    assert sum(looks) >= 1e6 * 0.999
    printed = capsys.readouterr().err
    assert "the loop has not gone round for 1e+06 s" in printed
    assert "culprit" in printed


async def test_a_loop_that_goes_round_is_left_alone(autojump_clock):
    codes, looks, done, token = [], [], trio.Event(), trio.lowlevel.current_trio_token()

    def pause(seconds):
        trio.from_thread.run(trio.sleep, seconds, trio_token=token)
        looks.append(seconds)
        if len(looks) == 50:
            trio.from_thread.run_sync(done.set, trio_token=token)
        return len(looks) == 50

    async with trio.open_nursery() as nursery:
        nursery.start_soon(StuckLoop(end=codes.append, pause=pause).run)
        await done.wait()
        nursery.cancel_scope.cancel()
    assert codes == []


async def test_the_thread_ends_with_the_task():
    with trio.move_on_after(0):
        await StuckLoop(seconds=36000.0).run()
    for thread in threading.enumerate():
        if thread.name == "stuck-loop":
            await trio.to_thread.run_sync(thread.join, 10)
            assert not thread.is_alive()
