import pytest
import trio
import trio.testing

from meshnode.network.outbox import Outbox


async def test_a_small_frame_does_not_overtake_a_large_one_that_waits_for_room():
    box = Outbox(1000)
    box.put_nowait(b"1" * 500)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.put, b"2" * 900)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            box.put_nowait(b"3")
        nursery.start_soon(box.put, b"3")
        await trio.testing.wait_all_tasks_blocked()
        sent = b""
        while box:
            sent += box.take()
            box.wrote()
    assert sent == b"1" * 500 + b"2" * 900 + b"3"


async def test_room_is_what_has_been_written_not_what_has_been_taken():
    box = Outbox(1000)
    box.put_nowait(bytes(1000))
    box.take()
    with pytest.raises(trio.WouldBlock):
        box.put_nowait(b"x")
    box.wrote()
    box.put_nowait(b"x")


async def test_small_frames_are_written_together_and_a_large_one_alone():
    box = Outbox(10 << 20)
    sizes = [10, 20, 30, 3 << 20, 40]
    for size in sizes:
        box.put_nowait(bytes(size))
    pieces = []
    while box:
        pieces.append(len(box.take()))
        box.wrote()
    assert pieces == [60, 3 << 20, 40]
    assert box.is_idle


async def test_of_urgent_frames_of_a_kind_the_newest_goes_and_it_goes_first():
    box = Outbox(1000)
    box.put_nowait(b"frame")
    for number in b"123":
        box.put_first("pong", bytes([number]))
    assert box.take() == b"3frame"


async def test_closing_lets_those_who_wait_go():
    box = Outbox(10)
    box.put_nowait(bytes(10))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.put, b"more")
        await trio.testing.wait_all_tasks_blocked()
        box.close()
    await box.filled()
    assert not box
