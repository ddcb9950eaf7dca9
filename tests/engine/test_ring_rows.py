"""What comes round a ring is looked at before it is computed with; a session that it harms leaves the ring, and no other."""

import pytest
from support.ring_stages import ANSWER, PROMPT, Between, good_row, now, stage_workers

from meshnode.engine.worker_messages import Lapped, LetTurn, Step
from meshnode.errors import BadRows, RequestError, RingBroken
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed
from meshnode.wire.ring_messages import Lap

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    with stage_workers(tmp_path_factory.mktemp("model")) as found:
        yield found


@pytest.fixture
def middle(workers):
    between = Between(workers["middle"], (1, 3))
    yield between
    between.close()


@pytest.fixture
def first(workers):
    """The first stage, whose sessions have begun and wait for the token that comes round."""
    between = Between(workers["begin"], (0, 2), embedding=True)
    for place in between.places:
        now(between.worker, Step(SessionId(place.name), 0, (5, 6), until=PROMPT))
    yield between
    between.close()


def refused(between, error, why):
    """Check that the daemon of the first session hears why it is in no ring any more, and that nothing is heard of the other."""
    first, second = between.exchanges
    between.turn(lambda: between.worker.failures(first))
    (failed,) = between.worker.failures(first)
    assert failed.code == error.code
    assert why in failed.message
    assert between.before.look(), "the link carries the other session"
    assert not between.worker.failures(second)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda row: row[:-2], "are not rows of 256"),
        (lambda row: b"", "are not rows of 256"),
        (lambda row: b"\xc0\x7f" + row[2:], "not finite"),
        (lambda row: row[:-2] + b"\x80\x7f", "not finite"),
    ],
    ids=["short", "empty", "no-number", "infinite"],
)
def test_a_row_that_makes_no_sense_takes_its_session_out_of_the_ring(middle, spoil, why):
    row = good_row(middle.worker)
    middle.lap(0, 0, spoil(row))
    refused(middle, BadRows, why)
    middle.lap(0, 0, row)
    middle.lap(1, 0, row)
    middle.turn(lambda: middle.has_passed("y", 0))
    assert not middle.has_passed("x", 0)


@pytest.mark.parametrize("position", [-1, 1, 1 << 63])
def test_a_position_that_is_not_the_next_does_too(middle, position):
    middle.lap(0, position, good_row(middle.worker))
    refused(middle, BadRows, f"position {position} came round")
    middle.lap(1, 0, good_row(middle.worker))
    middle.turn(lambda: middle.has_passed("y", 0))


@pytest.mark.parametrize("step", [-1, 8, 9, 11, 1 << 63])
def test_a_step_that_is_not_the_next_does_too(middle, step):
    """Passed on as it is, it would be found further on, and an honest stage would be blamed for it."""
    row = good_row(middle.worker)
    for place in middle.places:
        now(middle.worker, Step(SessionId(place.name), 0, number=8), row)
    for number in (0, 1):
        middle.lap(number, 1, row, step=9)
    middle.turn(lambda: middle.has_passed("x", 1) and middle.has_passed("y", 1))
    middle.lap(0, 2, row, step=step)
    refused(middle, BadRows, f"step {step} came round where 10 is the next")
    middle.lap(1, 2, row, step=10)
    middle.turn(lambda: middle.has_passed("y", 2))


def test_two_laps_at_once_do_too(middle):
    row = good_row(middle.worker)
    data = [middle.before.link.codec.encode(Lap(0, 1 + number, number), row) for number in (0, 1)]
    middle.before.link.socket.send(b"".join(data))  # in one piece: both lie there when the first is looked at
    refused(middle, BadRows, "position 1 came round where 0 is the next")
    middle.lap(1, 0, row)
    middle.turn(lambda: middle.has_passed("y", 0))


def test_more_rows_than_are_reserved_do_too(middle):
    row, room = good_row(middle.worker), PROMPT + ANSWER
    now(middle.worker, Step(SessionId("x"), 0), row * room)
    capacity = 256
    now(middle.worker, Step(SessionId("x"), room), row * (capacity - room))
    middle.lap(0, capacity, row)
    refused(middle, RequestError, f"do not fit the {capacity} reserved")


@pytest.mark.parametrize("token", [320, (1 << 32) - 1, -1])
def test_what_is_no_token_of_the_model_does_too(first, token):
    first.lap(0, 2, token=token)
    refused(first, RequestError, "token ids outside 0 to 319")
    first.lap(1, 2, token=7)
    first.turn(lambda: first.has_passed("y", 2))


@pytest.mark.parametrize(("step", "position"), [(-(1 << 63), 2), (0, 2), (2, 2), ((1 << 64) - 1, 2), (1, -1)])
def test_numbers_that_are_not_the_next_are_told_to_nobody(workers, step, position):
    """The daemon hears of the step before: that has to be the one it waits for."""
    first = Between(workers["begin"], (0, 2), embedding=True, tells=True)
    first.lap(0, position, step=step, token=7)
    refused(first, BadRows, "came round")
    assert not any(isinstance(said, Lapped) for said in first.worker.said(first.exchanges[0]))
    first.close()


def test_a_token_that_comes_to_the_head_is_not_told_of_as_its_own(workers):
    """Only the first stage hears tokens; the stage before the last one cannot speak for it."""
    last = Between(workers["end"], (2, 4), head=True, tells=True)
    last.lap(0, 0, token=7)
    refused(last, BadRows, "a token came round where a row is due")
    assert not any(isinstance(said, Lapped) for said in last.worker.said(last.exchanges[0]))
    last.close()


def test_a_row_where_a_token_is_due_does_too(first):
    first.lap(0, 2, good_row(first.worker))
    refused(first, BadRows, "a row came round where a token is due")


def test_a_token_where_a_row_is_due_does_too(middle):
    middle.lap(0, 0, token=7)
    refused(middle, BadRows, "a token came round where a row is due")


def test_a_second_token_while_one_is_held_does_too(first):
    for position in (2, 3):
        now(first.worker, Step(SessionId("x"), position, (7,), until=position + 1))
    first.lap(0, 4, token=7)
    first.lap(0, 4, token=8)
    refused(first, BadRows, "position 4 came round")
    first.lap(1, 2, token=7)
    first.turn(lambda: first.has_passed("y", 2))


def test_what_is_held_is_looked_at_when_the_ring_turns_on(first):
    first.lap(0, PROMPT + 3, token=7)
    first.turn(lambda: first.worker.batch._stepped._sessions[SessionId("x")].held)
    assert not first.worker.failures(first.exchanges[0])
    first.worker.ask(LetTurn(SessionId("x"), PROMPT + 9))
    refused(first, BadRows, f"position {PROMPT + 3} came round where 2 is the next")


def test_a_step_after_which_no_number_is_left_does_too_and_is_refused_of_the_daemon(workers):
    worker = workers["end"]
    last = Between(worker, (2, 4), head=True)
    row = good_row(worker)
    for place, number in zip(last.places, ((1 << 63) - 1, 0), strict=True):
        now(worker, Step(SessionId(place.name), 0, number=number), row * (PROMPT - 1))
    last.lap(0, PROMPT - 1, row, step=1 << 63)
    refused(last, RequestError, "has none after it")
    step = Step(SessionId("x"), PROMPT - 1, (), sample=True, number=(1 << 64) - 1, until=99)
    assert "none after it" in now(worker, step, row, kind=Failed)[0].message
    last.lap(1, PROMPT - 1, row)
    last.turn(lambda: last.has_passed("y", PROMPT))
    last.close()


def test_a_link_that_ends_breaks_the_ring_of_its_sessions_which_go_on_by_way_of_the_daemons(middle):
    middle.before.close()
    middle.turn(lambda: all(map(middle.worker.failures, middle.exchanges)))
    failures = [failed for exchange in middle.exchanges for failed in middle.worker.failures(exchange)]
    assert [failed.code for failed in failures] == [RingBroken.code] * 2
    done, rows = now(middle.worker, Step(SessionId("x"), 0), good_row(middle.worker))
    assert not done.goes_round
    assert len(rows) == 2 * 256
