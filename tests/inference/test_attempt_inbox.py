"""What a coordinator takes of what its stages say: from each what is its to say, and once."""

import pytest
import trio

from meshnode.inference.attempt_inbox import AttemptInbox
from meshnode.inference.laps import Laps
from meshnode.inference.losses import StageLost
from meshnode.types.blocks import BlockRange
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import SessionId
from meshnode.types.routes import Route, Stage
from meshnode.wire.stage_messages import Acknowledged, Answered, RingJoined, StageFailed

NAME, ATTEMPT = SessionId("s"), 2
TOKEN = TokenEvent(7)


def inbox(own="asker"):
    stages = tuple(
        Stage(peer, BlockRange(4 * index, 4 * index + 4), embedding=index == 0, head=index == 2)
        for index, peer in enumerate("abc")
    )
    return AttemptInbox(own, Route("model", stages, "toy"), ATTEMPT, Laps(3, 100))


def acknowledged(step, index):
    return Acknowledged(NAME, ATTEMPT, step, index)


def answered(step, token=None):
    return Answered(NAME, ATTEMPT, step, 0, token)


async def test_a_chunk_is_answered_by_the_stage_behind_which_nobody_lacks_it():
    one = inbox()
    for by in (0, 1, 2):
        step = one.expect(by)
        for index in range(by):
            assert one.push("abc"[index], acknowledged(step, index))
        assert [sender for sender in ("asker", "c", "b", "a", "d") if one.push(sender, answered(step))] == ["abc"[by]]
        assert await one.next(1) == answered(step)
        assert len(one) == 0


@pytest.mark.parametrize(("own", "teller"), [("a", "a"), ("b", "c"), ("asker", "c")])
def test_a_token_comes_from_the_head_or_of_what_goes_round_from_our_own_worker(own, teller):
    one = inbox(own)
    for by in (0, 1, 2):
        step = one.expect(by)
        can = by == 2 or "abc"[by] == own == "a"
        assert one.push("abc"[by], answered(step, TOKEN)) is can
    one.expect_laps(1)
    assert [sender for sender in "abc" if one.push(sender, answered(4, TOKEN))] == [teller]


async def test_nothing_is_taken_twice_or_of_what_is_not_on_its_way():
    one = inbox()
    step = one.expect(2)
    one.expect_laps(3)
    for index, sender in ((0, "a"), (2, "c"), (1, "b")):
        assert [one.push(sender, acknowledged(step, index)) for _ in range(3)] == [True, False, False]
        assert not one.push(sender, acknowledged(step + 1, index)), "nobody acknowledges what goes round"
        for news in (RingJoined(NAME, ATTEMPT, index), StageFailed(NAME, ATTEMPT, index, "engine", "")):
            assert [one.push(sender, news) for _ in range(3)] == [True, False, False]
    assert one.oldest == 2
    assert one.laps.is_whole
    assert [one.push("c", answered(step, TOKEN)) for _ in range(3)] == [True, False, False]
    assert not any(one.push("c", answered(other, TOKEN)) for other in (-1, 0, 5, 10**9))


async def test_a_chunk_is_done_when_all_in_front_have_acknowledged_it(autojump_clock):
    one = inbox()
    step = one.expect(2)
    assert one.push("c", answered(step))
    assert not one.push("c", answered(step))
    for index, sender in enumerate("ab"):
        assert await one.next(1) is None
        assert one.push(sender, acknowledged(step, index))
    assert await one.next(1) == answered(step)
    assert len(one) == 0


@pytest.mark.parametrize(
    ("acknowledging", "blamed"), [((), 0), ((0,), 0), ((0, 1), 1), ((0, 1, 2), 2), ((0, 2), 1), ((1, 2), 0)]
)
async def test_a_step_is_where_it_was_acknowledged_last_or_passed_without_a_word(acknowledging, blamed):
    one = inbox()
    step = one.expect(2)
    for index in acknowledging:
        one.push("abc"[index], acknowledged(step, index))
    assert one.oldest == blamed


async def test_all_that_can_be_said_has_room_and_comes_in_order():
    one, said = inbox(), []
    steps = [one.expect(2) for _ in range(8)]
    one.expect_laps(64)
    for step in (*steps, *range(9, 73)):
        said.append(answered(step, TOKEN))
        assert one.push("c", said[-1])
    for index, sender in enumerate("abc"):
        said.append(StageFailed(NAME, ATTEMPT, index, "engine", ""))
        assert one.push(sender, said[-1])
    for sender in "abc":
        said.append(StageLost(sender, "its link ended"))
        with trio.fail_after(1):
            await one.lost(said[-1])
    assert [await one.next(1) for _ in said] == said


async def test_patience_begins_anew_with_each_acknowledgement(autojump_clock):
    one = inbox()
    step = one.expect(2)

    async def acknowledge():
        for index, sender in enumerate("abc"):
            await trio.sleep(0.8)
            one.push(sender, acknowledged(step, index))
        for _ in range(10):
            await trio.sleep(0.4)
            one.push("c", acknowledged(step, 2))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acknowledge)
        assert await one.next(1) is None
        assert trio.current_time() - began == pytest.approx(3.4)
        nursery.cancel_scope.cancel()
