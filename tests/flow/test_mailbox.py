"""A mailbox outlives its servers and never leaves an asker waiting."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from meshnode.errors import RequestError, Unavailable
from meshnode.flow.mailbox import Mailbox


async def _double(box: Mailbox[int, int], task_status=trio.TASK_STATUS_IGNORED) -> None:
    with box.serve() as letters:
        task_status.started()
        async for letter in letters:
            if letter.question < 0:
                letter.refuse(RequestError("negative"))
            else:
                letter.answer(2 * letter.question)


async def test_an_answer_reaches_its_asker(nursery):
    box = Mailbox("doubler")
    await nursery.start(_double, box)
    assert await box.ask(21) == 42


async def test_a_refusal_is_raised_where_it_was_asked(nursery):
    box = Mailbox("doubler")
    await nursery.start(_double, box)
    with pytest.raises(RequestError, match="negative"):
        await box.ask(-1)
    assert await box.ask(1) == 2


async def test_a_letter_in_hand_is_refused_when_its_server_ends(autojump_clock):
    box = Mailbox("crasher", size=4)
    outcomes = []

    async def ask(number):
        try:
            outcomes.append(await box.ask(number))
        except Unavailable as error:
            outcomes.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, 2)
        await wait_all_tasks_blocked()
        with box.serve() as letters:
            async for _ in letters:
                break
        await wait_all_tasks_blocked()
        assert outcomes == ["crasher stopped while it had this request; try again"]
        with box.serve() as letters:  # the unread letter waits for the next incarnation
            async for letter in letters:
                letter.answer(letter.question * 10)
                break
    assert outcomes[1:] == [20]


async def test_cancelling_the_asker_marks_the_letter(autojump_clock):
    box = Mailbox("slow")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_ask_in, scope, box)
            with box.serve() as letters:
                async for letter in letters:
                    assert not letter.abandoned.is_set()
                    scope_done = letter.abandoned
                    break
                nursery.cancel_scope.cancel()
                await trio.lowlevel.checkpoint()
    assert scope_done.is_set()


async def _ask_in(scope, box):
    await box.ask(1)


async def test_an_abandoned_unread_letter_is_skipped(autojump_clock):
    box = Mailbox("skips", size=2)
    with trio.move_on_after(1):
        await box.ask(1)
    await box.tell(2)
    with box.serve() as letters:
        async for letter in letters:
            assert letter.question == 2
            assert not letter.is_owed
            break


async def test_telling_without_room_says_so():
    box = Mailbox("full", size=1)
    box.tell_nowait(1)
    assert box.waiting() == 1
    with pytest.raises(trio.WouldBlock):
        box.tell_nowait(2)


async def test_settling_twice_keeps_the_first(nursery):
    box = Mailbox("twice", size=1)

    async def serve():
        with box.serve() as letters:
            async for letter in letters:
                letter.answer("first")
                letter.answer("second")
                letter.refuse(RequestError("third"))
                break

    nursery.start_soon(serve)
    assert await box.ask("?") == "first"


async def test_a_server_does_not_keep_what_nobody_waits_for(autojump_clock):
    box = Mailbox("long lived", size=1)
    with box.serve() as letters:
        for number in range(20):
            with trio.move_on_after(1):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(box.ask, number)
                    await anext(letters)
        await box.tell("last")
        await anext(letters)
        assert len(letters._taken) == 1


async def test_each_refused_asker_gets_an_error_of_its_own(autojump_clock):
    box = Mailbox("crasher", size=2)
    errors = []

    async def ask():
        with pytest.raises(Unavailable) as caught:
            await box.ask("?")
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        with box.serve() as letters:
            await anext(letters)
            await anext(letters)
    first, second = errors
    assert first is not second


async def _serve_at_once(box, at_once, letters_taken, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
    with box.serve(at_once=at_once) as letters:
        task_status.started()
        async for letter in letters:
            letters_taken.append(letter.question)
            await trio.sleep(1)


async def test_what_is_told_is_taken_at_once_where_nothing_waits(nursery, autojump_clock):
    box, at_once, letters = Mailbox("taker", size=4), [], []
    await nursery.start(_serve_at_once, box, lambda each: at_once.append(each) or True, letters)
    box.tell_nowait(1)
    assert at_once == [1]
    await box.tell(2)
    assert (at_once, letters) == ([1, 2], [])


async def test_nothing_overtakes_what_waits_or_is_in_hand(nursery, autojump_clock):
    box, order = Mailbox("taker", size=8), []
    box.tell_nowait(1)  # before anybody serves
    await nursery.start(_serve_at_once, box, lambda each: order.append(each) or True, order)
    box.tell_nowait(2)
    await trio.sleep(0.5)
    box.tell_nowait(3)  # while the first one is in hand
    await trio.sleep(5)
    box.tell_nowait(4)
    assert order == [1, 2, 3, 4]


async def test_what_is_declined_or_fails_is_a_letter(nursery, autojump_clock):
    """A crash belongs to the one who serves, and not to whoever told."""

    def at_once(message):
        if message == 2:
            raise RuntimeError("the server's fault")
        return False

    box, letters = Mailbox("taker", size=4), []
    await nursery.start(_serve_at_once, box, at_once, letters)
    box.tell_nowait(1)
    await trio.sleep(2)
    await box.tell(2)
    await trio.sleep(2)
    assert letters == [1, 2]


async def test_a_teller_who_gives_up_does_not_hold_up_those_who_come_after(nursery, autojump_clock):
    box, taken = Mailbox("taker", size=1), []
    box.tell_nowait(1)
    with trio.move_on_after(1):
        await box.tell(2)
    await nursery.start(_serve_at_once, box, lambda each: taken.append(each) or True, taken)
    await trio.sleep(3)
    box.tell_nowait(3)
    assert taken == [1, 3]
