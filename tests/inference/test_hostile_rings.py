"""Stages that lie in a ring or about it: the text is right, and no wait is longer than it has to be."""

import pytest
import trio
from support.ring_mesh import COUNT, THREE, expected, open_ring_mesh
from support.toy_executor import WIDTH
from support.toy_mesh import PROMPT, WISH, generate, new_session

from meshnode.types.evidence import Misdeed
from meshnode.types.generation import TokenEvent
from meshnode.wire.ring_messages import Lap, RingDoor
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    JoinRing,
    RingJoined,
    StageFailed,
    StageStepMessage,
    TurnRing,
)

AT = len(PROMPT) + 10  # position from which on a liar lies


@pytest.fixture
async def mesh(nursery):
    return open_ring_mesh(nursery)


def changed(message, **changes):
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return type(message)(**(fields | changes))


def instead(sender, kind, make, position=AT):
    """Let `sender` say something else in place of a kind of message, once its session is under way."""

    def tamper(own, _peer, message, body):
        if own == sender and isinstance(message, kind) and message.position >= position:
            return [(0.0, *each) for each in make(message, body)]
        return [(0.0, message, body)]

    return tamper


async def tell(mesh, sender, receiver, message, body=b""):
    link = await mesh.network.nodes[sender].to(receiver)
    await link.send(message, body)


# Rows that go round


ROWS = {
    "not finite": ("b", lambda lap, body: [(lap, b"\xff" * WIDTH)]),
    "too short": ("b", lambda lap, body: [(lap, body[:-1])]),
    "too many": ("b", lambda lap, body: [(lap, body * 2)]),
    "of another position": ("b", lambda lap, body: [(changed(lap, position=lap.position + 1), body)]),
    "of a position before": ("b", lambda lap, body: [(changed(lap, position=0), body)]),
    "twice": ("b", lambda lap, body: [(lap, body), (lap, body)]),
    "of another step": ("b", lambda lap, body: [(changed(lap, step=lap.step + 1), body)]),
    "no token": ("c", lambda lap, body: [(changed(lap, event=None), b"")]),
    "a token that does not exist": ("c", lambda lap, body: [(changed(lap, event=TokenEvent(64)), b"")]),
    "a token of another step": ("c", lambda lap, body: [(changed(lap, step=lap.step - 1), body)]),
    "a token twice": ("c", lambda lap, body: [(lap, body), (lap, body)]),
}


@pytest.mark.parametrize("what", ROWS)
async def test_rows_that_are_wrong_cost_the_stage_before(mesh, autojump_clock, what):
    """For the first stage: the last. It is accused of tokens alone, as who sent a row to another cannot be proved."""
    liar, lie = ROWS[what]
    await mesh.add_all(*THREE)
    await mesh.add("spare", 4, 12, pace=1e-3)
    await mesh.add("spare c", 9, 12, pace=1e-3)
    mesh.network.tamper = instead(liar, Lap, lie)
    session = new_session(COUNT)
    assert await generate(mesh.nodes["a"], session) == await expected()
    assert session.recoveries == 1
    assert liar not in session.route.peers
    accused = {("c", Misdeed.WRONG_ROWS)} if what == "a token that does not exist" else set()
    assert {(each.peer, each.misdeed) for each in mesh.evidence} == accused
    await mesh.assert_all_is_free()


@pytest.mark.parametrize("liar", ["b", "c"])
async def test_who_lets_nothing_go_on_costs_a_wait_and_no_answer(mesh, autojump_clock, liar):
    """It gives signs of life. In a ring nobody can say whose fault it is, so the daemons have to look."""
    await mesh.add_all(*THREE)
    mesh.network.tamper = instead(liar, Lap, lambda lap, body: [])
    session, began = new_session(COUNT), trio.current_time()
    assert await generate(mesh.nodes["a"], session) == await expected()
    assert session.recoveries == 0
    assert trio.current_time() - began < 90
    await mesh.assert_all_is_free()


# What is said of rings


ANSWERS = {
    "out of turn": lambda message: [changed(message, step=message.step + 1)],
    "a token that does not exist": lambda message: [changed(message, token=TokenEvent(64))],
    "no token": lambda message: [changed(message, token=None)],
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_a_last_stage_that_answers_with_what_cannot_be_is_replaced(mesh, autojump_clock, what):
    await mesh.add_all(*THREE)
    await mesh.add("spare", 9, 12, pace=1e-3)
    mesh.network.tamper = instead("c", Answered, lambda message, _: [(each, b"") for each in ANSWERS[what](message)])
    session = new_session(COUNT)
    assert await generate(mesh.nodes["b"], session) == await expected()  # whose first stage is another's
    assert session.recoveries == 1
    assert "spare" in session.route.peers
    accused = {("c", Misdeed.WRONG_ROWS)} if what == "a token that does not exist" else set()
    assert {(each.peer, each.misdeed) for each in mesh.evidence} == accused
    await mesh.assert_all_is_free()


MORE_ANSWERS = {
    "twice": lambda message: [message, message],
    "for a step long gone": lambda message: [changed(message, step=1), message],
    "for steps never sent": lambda message: [changed(message, step=step) for step in (10**6, 0, -1)] + [message],
    "of another attempt": lambda message: [changed(message, attempt=attempt) for attempt in (0, 2)] + [message],
}


@pytest.mark.parametrize("what", MORE_ANSWERS)
async def test_answers_to_what_was_not_asked_change_nothing(mesh, autojump_clock, what):
    await mesh.add_all(*THREE)
    mesh.network.tamper = instead(
        "c", Answered, lambda message, _: [(each, b"") for each in MORE_ANSWERS[what](message)]
    )
    session = new_session(COUNT)
    assert await generate(mesh.nodes["b"], session) == await expected()
    assert session.recoveries == 0


FORGED = {
    "this token": lambda lap: (lap.step, TokenEvent(7)),
    "that the next ones have no token": lambda lap: (lap.step + 5, None),
}


@pytest.mark.parametrize("what", FORGED)
async def test_a_stage_in_the_middle_does_not_answer_for_the_last(mesh, autojump_clock, what):
    await mesh.add_all(*THREE)
    forged = []

    session = new_session(COUNT)

    def lie(lap, body):
        step, token = FORGED[what](lap)
        forged.append(Answered(session.id, 1, step, lap.position, token))
        mesh.nursery.start_soon(tell, mesh, "b", "a", forged[-1])
        return [(lap, body)]

    mesh.network.tamper = instead("b", Lap, lie)
    assert await generate(mesh.nodes["a"], session) == await expected()
    assert (session.recoveries, mesh.evidence) == (0, [])
    assert len(forged) > COUNT - 12
    assert mesh.stray("answered") >= len(forged) - 1


@pytest.mark.parametrize("asker", ["a", "c"])
async def test_what_is_said_again_and_again_pushes_out_nothing_that_others_say(mesh, autojump_clock, asker):
    """While the reader takes nothing, tokens lie unread: were one pushed out, the one after it would be out of turn."""
    await mesh.add_all(*THREE)
    session = new_session(COUNT)

    async def take(_event):
        if len(session.generated) == 20:
            step = mesh.rings.laps[-1][2].step + 8
            for message in (Acknowledged(session.id, 1, step, 1), RingJoined(session.id, 1, 1)):
                for _ in range(300):
                    await tell(mesh, "b", asker, message)
            await trio.sleep(1)
        return True

    await mesh.nodes[asker].coordinator.run(session, WISH, take)
    assert session.generated == await expected()
    assert (session.recoveries, mesh.evidence) == (0, [])
    assert (mesh.stray("acknowledged"), mesh.stray("ring_joined")) == (300, 300)


async def test_a_step_that_the_middle_makes_up_has_nobody_accused(mesh, autojump_clock):
    """The last stage takes it for the next one, as it comes from the stage before, and so it answers out of turn."""
    await mesh.add_all(*THREE)
    await mesh.add("asker", 2, 3, pace=1e-2)
    session = new_session(COUNT)

    def make_up():
        last = [message for message in mesh.sent(StageStepMessage) if message.index == 2][-1]
        position, step = last.position + last.rows, mesh.rings.laps[-1][2].step + 8
        row = next(body for own, _, lap, body in mesh.rings.laps if (own, lap.position) == ("b", position))
        made_up = changed(last, step=step, position=position, rows=1, sample=True)
        mesh.nursery.start_soon(tell, mesh, "b", "c", made_up, row)

    assert await generate(mesh.nodes["asker"], session, {20: make_up}) == await expected()
    assert (session.recoveries, mesh.evidence) == (0, [])
    assert {"b", "c"} < session.route.peers
    assert len(mesh.rings.laps) < 3 * 40, "without a ring from there on"
    await mesh.assert_all_is_free()


async def test_who_rightly_tells_of_two_liars_is_not_taken_for_one(mesh, autojump_clock):
    """It is the coordinator's own stage: of another's, the second word would be one too many."""
    for name, start, pace in (("a", 0, 1e-4), ("x", 6, 1e-4), ("y", 6, 1e-3), ("z", 6, 1e-2)):
        await mesh.add(name, start, start + 6, pace=pace)

    def tamper(own, _peer, message, body):
        if own in ("x", "y") and isinstance(message, Lap) and message.position >= AT:
            message = changed(message, position=message.position + 1)
        return [(0.0, message, body)]

    mesh.network.tamper = tamper
    session = new_session(COUNT)
    assert await generate(mesh.nodes["a"], session) == await expected()
    assert session.recoveries == 2
    assert session.route.peers == {"a", "z"}


async def test_who_says_for_ever_that_rings_break_is_replaced(mesh, autojump_clock):
    """The first time is believed; then there is no ring that could."""
    await mesh.add_all(*THREE)
    await mesh.add("spare", 4, 12, pace=1e-3)

    session = new_session(COUNT)

    def lie(_message, _body):
        attempt = mesh.nodes["a"].coordinator.pipelines[session.id].attempt
        said.append(StageFailed(session.id, attempt, 1, "ring_broken", "as always"))
        mesh.nursery.start_soon(tell, mesh, "b", "a", said[-1])
        return []

    said = []
    mesh.network.tamper = instead("b", Lap | StageStepMessage, lie)
    with trio.fail_after(60):
        assert await generate(mesh.nodes["a"], session) == await expected()
    assert [failed.attempt for failed in said] == [1, 2]
    assert session.recoveries == 1
    assert "b" not in session.route.peers


async def test_nobody_joins_a_ring_in_the_name_of_another(mesh, autojump_clock):
    """The last stage is never asked to join, so that the ring would be whole only if it were believed who says so."""
    await mesh.add_all(*THREE)
    await mesh.add("stranger", 4, 9, pace=1e-2)
    lies = [("b", 1, 2), ("b", 1, 0), ("b", 1, -1), ("b", 1, 3), ("stranger", 1, 2), ("c", 0, 2), ("c", 2, 2)]

    def tamper(own, peer, message, body):
        if isinstance(message, JoinRing) and peer == "c":
            for sender, attempt, index in lies:
                mesh.nursery.start_soon(tell, mesh, sender, own, RingJoined(message.session, attempt, index))
            return []
        return [(0.0, message, body)]

    mesh.network.tamper = tamper
    session = new_session(COUNT)
    assert await generate(mesh.nodes["a"], session) == await expected()
    assert session.recoveries == 0
    assert mesh.stray("ring_joined") == len(lies)
    assert not mesh.rings.laps
    await mesh.assert_all_is_free()


async def test_a_ring_is_joined_and_turned_by_its_coordinator_alone(mesh, autojump_clock):
    """Not by who knows its name, nor for an attempt that is over or has not begun."""
    await mesh.add_all(*THREE)
    await mesh.add("stranger", 4, 9, pace=1e-2)
    door = RingDoor(("stranger",), 1, b"", b"t")
    session = new_session(200)

    def meddle():
        for name, index in (("a", 0), ("b", 1)):
            for sender, attempt in (("stranger", 1), ("stranger", 2), ("c", 0), ("c", 2)):
                mesh.nursery.start_soon(tell, mesh, sender, name, JoinRing(session.id, attempt, index, door, True))
        for sender, attempt in (("stranger", 1), ("b", 1), ("c", 0), ("c", 2)):
            mesh.nursery.start_soon(tell, mesh, sender, "a", TurnRing(session.id, attempt, 10**6))

    assert await generate(mesh.nodes["c"], session, {20: meddle}) == await expected(200)
    assert session.recoveries == 0
    assert (mesh.stray("join_ring"), mesh.stray("turn_ring")) == (8, 4)
    await mesh.assert_all_is_free()


@pytest.mark.parametrize("count", [7, COUNT])
async def test_a_coordinator_that_asks_for_more_than_one_ring_gets_one(mesh, autojump_clock, count):
    """Or none, where it wanted no door; and many wishes are not kept."""
    await mesh.add_all(*THREE)
    door = RingDoor(("c",), 1, b"", b"t")
    session = new_session(count)

    def wishes():
        for _ in range(20):
            mesh.nursery.start_soon(tell, mesh, "a", "b", JoinRing(session.id, 1, 1, door, True))

    assert await generate(mesh.nodes["a"], session, {5: wishes}) == await expected(count)
    assert session.recoveries == 0
    assert mesh.stray("join_ring") == (20 if count == 7 else 16)
    await mesh.assert_all_is_free()
