"""Stages that do what no honest stage does: the session goes on without them with the right text, and they are noted."""

import attrs
import pytest
import trio
from support.memory_mesh import MemoryNetwork
from support.toy_executor import WIDTH, toy_answer
from support.toy_mesh import BLOCKS, PROMPT, WISH, Mesh, generate, new_session

from meshnode.errors import GrammarRefused, MeshnodeError, Overloaded, PeerMisbehaved, SessionLost
from meshnode.inference.closed_sessions import ClosedSessions
from meshnode.inference.session import Session
from meshnode.types.blocks import BlockRange
from meshnode.types.evidence import Misdeed
from meshnode.types.generation import SamplingParameters, TokenEvent
from meshnode.types.ids import SessionId
from meshnode.wire.failures import failure
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    CloseStage,
    OpenStage,
    Probe,
    ProbeReply,
    StageFailed,
    StageOpened,
    StageStepMessage,
)

COUNT = 30
AT = 10  # rows after the prompt from which on the evil one is evil
NAN = b"\xff" * WIDTH


@pytest.fixture
async def mesh(nursery):
    """`evil` lies between two honest ones and is fast; `spare` and `reserve` can do what it does, slowly."""
    mesh = Mesh(MemoryNetwork(nursery), nursery)
    await mesh.add("a", 0, 4)
    await mesh.add("evil", 4, 9)
    await mesh.add("c", 9, 12)
    await mesh.add("spare", 4, 12, pace=1e-3)
    await mesh.add("reserve", 4, 12, pace=2e-3)
    return mesh


def tampering(name, change):
    """What goes out of `name` once its session is under way, as `change` has it: (seconds late, message, body) of each."""

    def tamper(own, peer, message, body):
        begun = getattr(message, "position", 0) >= len(PROMPT) + AT or getattr(message, "step", 0) > AT
        return change(peer, message, body) if own == name and begun else [(0.0, message, body)]

    return tamper


def step(**changes):
    """Change the steps."""

    def change(_peer, message, body):
        if not isinstance(message, StageStepMessage):
            return [(0.0, message, body)]
        made = {name: value(message, body) for name, value in changes.items()}
        body = made.pop("body", body)
        return [(0.0, attrs_of(message, made), body)]

    return change


def attrs_of(message, changes):
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return type(message)(**(fields | changes))


def stray(mesh, kind):
    return mesh.metrics.inference_stray_messages_total.labels(kind=kind)._value.get()


async def answer_of(mesh, **sampling):
    """Generate, and once more without anything left behind; return the session of the first."""
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(**sampling), COUNT)
    session = new_session(COUNT, **sampling)
    assert await generate(mesh.nodes["a"], session) == expected
    await trio.sleep(1)
    assert {name: held for name, held in mesh.held().items() if held} == {}
    assert await generate(mesh.nodes["a"], new_session(COUNT, **sampling)) == expected
    return session


def misdeeds(mesh):
    return {(each.peer, each.misdeed) for each in mesh.evidence}


NO_ROWS = {
    "not finite": step(body=lambda message, body: NAN * message.rows),
    "no whole rows": step(body=lambda message, body: body[:-1]),
    "too few": step(body=lambda message, body: body[:-WIDTH]),
    "none": step(body=lambda message, body: b""),
    "fewer than it says": step(rows=lambda message, body: message.rows - 1),
    "a negative number": step(rows=lambda message, body: -1),
}
OTHER_ROWS = {  # which an honest stage sends of another model
    "too many": step(body=lambda message, body: body * 2),
    "of another dtype": step(body=lambda message, body: body + bytes(len(body))),
    "more than it says": step(rows=lambda message, body: message.rows + 1),
}


@pytest.mark.parametrize("what", NO_ROWS | OTHER_ROWS)
async def test_rows_that_are_wrong_are_refused_and_their_maker_replaced(mesh, autojump_clock, what):
    mesh.network.tamper = tampering("evil", (NO_ROWS | OTHER_ROWS)[what])
    session = await answer_of(mesh)
    assert session.recoveries == 1
    assert "evil" not in session.route.peers
    assert "c" in session.route.peers or "spare" in session.route.peers
    assert misdeeds(mesh) == ({("evil", Misdeed.WRONG_ROWS)} if what in NO_ROWS else set())


@pytest.mark.parametrize("distance", [5, -5, -(10**6), 2**62])
async def test_rows_for_a_position_that_leaves_a_gap_or_is_none_are_refused(mesh, autojump_clock, distance):
    mesh.network.tamper = tampering("evil", step(position=lambda message, body: message.position + distance))
    session = await answer_of(mesh)
    assert session.recoveries == 1
    assert "evil" not in session.route.peers


async def test_a_step_that_comes_twice_is_computed_once(mesh, autojump_clock):
    """Also long after the first time, when other steps have followed."""

    def twice(_peer, message, body):
        again = [(late, message, body) for late in (0.0, 0.05)] if isinstance(message, StageStepMessage) else []
        return [(0.0, message, body), *again]

    mesh.network.tamper = tampering("evil", twice)
    session = await answer_of(mesh)
    assert session.recoveries == 0
    assert stray(mesh, "step") >= COUNT - AT


async def test_a_step_out_of_order_is_dropped_and_the_missing_one_noticed(mesh, autojump_clock):
    held = []

    def swapped(_peer, message, body):
        """Hold one step back until the one after it, which never comes."""
        if isinstance(message, StageStepMessage) and not held:
            held.append(message)
            return [(0.0, attrs_of(message, {"step": message.step - 1}), body)]
        return [(0.0, message, body)]

    mesh.network.tamper = tampering("evil", swapped)
    session = await answer_of(mesh)
    assert session.recoveries == 1
    assert stray(mesh, "step")


async def test_more_steps_than_a_coordinator_sends_close_the_stage(mesh, autojump_clock):
    def flood(_peer, message, body):
        if not isinstance(message, StageStepMessage):
            return [(0.0, message, body)]
        return [(0.0, attrs_of(message, {"step": message.step + more}), body) for more in range(40)]

    mesh.network.tamper = tampering("evil", flood)
    session = await answer_of(mesh)
    assert session.recoveries == 1
    assert "evil" not in session.route.peers


# Answers


def instead(make, kind=StageStepMessage):
    """Say something else in place of a kind of message."""

    def change(peer, message, body):
        return make(peer, message, body) if isinstance(message, kind) else [(0.0, message, body)]

    return change


async def test_a_middle_stage_that_answers_in_place_of_the_head_is_not_heard(mesh, autojump_clock):
    """Its token, and its claim that nobody further on needs the row."""
    evil = mesh.network.nodes["evil"]

    def answers(_peer, message, body):
        if not isinstance(message, Acknowledged):
            return [(0.0, message, body)]
        forged = [Answered(message.session, message.attempt, message.step, 0, token) for token in (TokenEvent(7), None)]
        return [*((0.0, each, b"") for each in forged), (0.0, message, body)]

    assert evil
    mesh.network.tamper = tampering("evil", answers)
    session = await answer_of(mesh)
    assert session.recoveries == 0
    assert stray(mesh, "answered") >= 2 * (COUNT - AT)


@pytest.mark.parametrize("late", [0.0, 0.01, 0.5])
async def test_an_answer_that_comes_again_is_not_the_next_one(mesh, autojump_clock, late):
    mesh.kill("spare")
    mesh.network.tamper = tampering(
        "c", instead(lambda _peer, message, body: [(0.0, message, body), (late, message, body)], Answered)
    )
    session = await answer_of(mesh)
    assert session.recoveries == 0
    assert stray(mesh, "answered") >= COUNT - AT


async def test_an_answer_to_another_session_or_attempt_disturbs_neither(mesh, autojump_clock):
    def others(_peer, message, body):
        wrong = [{"session": SessionId("0" * 24)}, {"attempt": 2}, {"attempt": 0}, {"step": 10**6}, {"step": -1}]
        return [*((0.0, attrs_of(message, each), body) for each in wrong), (0.0, message, body)]

    mesh.network.tamper = tampering("c", instead(others, Answered))
    session = await answer_of(mesh)
    assert session.recoveries == 0


async def test_an_answer_that_comes_after_its_sender_was_replaced_changes_nothing(mesh, autojump_clock):
    """The head stood still, another took its place, and then everything it had to say arrives."""
    mesh.network.tamper = tampering("c", lambda _peer, message, body: [(4.0, message, body)])
    session = await answer_of(mesh)
    assert session.recoveries >= 1
    assert "c" not in session.route.peers


IMPOSSIBLE = {
    "negative": TokenEvent(-1),
    "outside the vocabulary": TokenEvent(64),
    "absent": None,
    "without its log-probability": TokenEvent(1),
    "with one that is no number": TokenEvent(1, float("nan")),
    "with one that is positive": TokenEvent(1, 3.0),
    "with more alternatives than were wanted": TokenEvent(1, -1.0, ((1, -1.0),) * 9),
    "with an alternative that is no token": TokenEvent(1, -1.0, ((-7, -1.0),)),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
async def test_a_token_that_cannot_be_is_the_heads_last(mesh, autojump_clock, what):
    """It is accused only of tokens that the model does not have: numbers that are none may come of the rows it was sent."""

    def lie(_peer, message, body):
        return [(0.0, attrs_of(message, {"token": IMPOSSIBLE[what]}), body)]

    mesh.network.tamper = tampering("c", instead(lie, Answered))
    wants_logprobs = "log-prob" in what or "with" in what.split()
    session = await answer_of(mesh, **({"top_logprobs": 2} if wants_logprobs else {}))
    assert session.recoveries == 1
    assert "c" not in session.route.peers
    is_unknown = what in ("negative", "outside the vocabulary", "with an alternative that is no token")
    assert misdeeds(mesh) == ({("c", Misdeed.WRONG_ROWS)} if is_unknown else set())


@pytest.mark.parametrize(("liar", "slow"), [("b", "a"), ("c", "a"), ("c", "b")])
async def test_who_answers_chunks_that_are_not_done_has_nobody_flooded(nursery, autojump_clock, liar, slow):
    """Each answer would let the coordinator send one more chunk, until a stage in front has more than it takes."""
    mesh = Mesh(MemoryNetwork(nursery), nursery)
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12)):
        await mesh.add(name, start, end, pace=1e-3 if name == slow else 1e-4)
    prompt = tuple(n % 64 for n in range(16 * 40))

    def tamper(own, _peer, message, body):
        told = [(0.0, message, body)]
        if own == liar and isinstance(message, Acknowledged):
            steps = range(message.step, min(message.step + 20, 40))
            told += [(0.0, Answered(message.session, message.attempt, step, 0), b"") for step in steps]
        return told

    mesh.network.tamper = tamper
    session = Session(prompt, 2, SamplingParameters(), frozenset(), vocabulary=64)
    wish = attrs.evolve(WISH, tokens=700, prompt_tokens=len(prompt))
    expected = await toy_answer(BLOCKS, prompt, SamplingParameters(), 2)
    assert await generate(mesh.nodes["a"], session, wish=wish) == expected
    assert (session.recoveries, misdeeds(mesh)) == (0, set())
    assert stray(mesh, "answered") >= 40 * 10


# Silence


@pytest.mark.parametrize("alive", [True, False], ids=["answers probes", "says nothing"])
async def test_a_stage_that_takes_rows_and_gives_none_is_replaced(mesh, autojump_clock, alive):
    """One that says nothing at all after some seconds; one that lives when no step can take that long."""

    def swallow(own, peer, message, body):
        mute = own == "evil" and isinstance(message, ProbeReply) and not alive
        lost = isinstance(message, StageStepMessage) and message.position >= len(PROMPT) + AT
        return [] if mute or (own == "evil" and lost) else [(0.0, message, body)]

    mesh.network.tamper = swallow
    began = trio.current_time()
    session = new_session(COUNT)
    await generate(mesh.nodes["a"], session)
    assert session.recoveries == 1
    assert "evil" not in session.route.peers
    assert trio.current_time() - began < (90 if alive else 5)
    began = trio.current_time()
    await answer_of(mesh)
    assert trio.current_time() - began < 5, "new sessions go past it"


async def test_acknowledging_for_ever_does_not_keep_a_session_waiting_for_ever(mesh, autojump_clock):
    def stall(peer, message, body):
        if isinstance(message, StageStepMessage):
            return []
        if isinstance(message, Acknowledged):
            return [(0.1 * turn, message, body) for turn in range(5000)]
        return [(0.0, message, body)]

    mesh.network.tamper = tampering("evil", stall)
    began = trio.current_time()
    session = new_session(COUNT)
    await generate(mesh.nodes["a"], session)
    assert trio.current_time() - began < 90
    assert "evil" not in session.route.peers


# False accusations


def failed(code, blames=None):
    def change(_peer, message, body):
        if not isinstance(message, Acknowledged):
            return [] if isinstance(message, StageStepMessage) else [(0.0, message, body)]
        return [(0.0, StageFailed(message.session, message.attempt, message.index, code, "no", blames), b"")]

    return change


@pytest.mark.parametrize("code", ["bad_rows", "invalid_request", "grammar_refused"])
async def test_who_refuses_what_this_node_made_is_replaced_itself(mesh, autojump_clock, code):
    mesh.network.tamper = tampering("evil", failed(code))
    session = await answer_of(mesh)
    assert session.recoveries == 1
    assert "evil" not in session.route.peers


@pytest.mark.parametrize("code", ["bad_rows", "peer_unreachable"])
async def test_who_accuses_a_second_neighbour_is_replaced_itself(nursery, autojump_clock, code):
    """One accusation is believed, since one of the two is at fault and nobody can know which."""
    mesh = Mesh(MemoryNetwork(nursery), nursery)
    for name, start, end, pace in (("a", 0, 3, 1), ("b", 3, 6, 1), ("b2", 3, 6, 2), ("evil", 6, 9, 1)):
        await mesh.add(name, start, end, pace=pace * 1e-4)
    for name, start, end, pace in (("d", 9, 12, 1), ("d2", 9, 12, 2), ("honest", 6, 9, 9)):
        await mesh.add(name, start, end, pace=pace * 1e-4)
    mesh.network.tamper = tampering("evil", failed(code, "d" if code == "peer_unreachable" else None))
    session = await answer_of(mesh)
    assert session.recoveries == 2
    assert "evil" not in session.route.peers


@pytest.mark.parametrize("index", [-1, -100, 3, 10**9, 0, 2])
async def test_a_failure_in_the_name_of_another_stage_is_not_heard(mesh, autojump_clock, index):
    def accuse(_peer, message, body):
        lie = StageFailed(message.session, message.attempt, index, "engine", "I am broken", "a")
        return [(0.0, lie, b""), (0.0, message, body)]

    mesh.network.tamper = tampering("evil", instead(accuse, Acknowledged))
    session = await answer_of(mesh)
    assert session.recoveries == 0
    assert stray(mesh, "stage_failed") >= COUNT - AT


@pytest.mark.parametrize("when", ["step", "open"])
@pytest.mark.parametrize("liar", ["evil", "c"])
async def test_a_grammar_is_refused_by_the_stage_that_samples(mesh, autojump_clock, liar, when):
    """That ends the answer, since any other node would refuse it too; of another stage it is a lie."""
    refuse = failed("grammar_refused")

    def tamper(own, peer, message, body):
        if own == liar and when == "open" and isinstance(message, StageOpened):
            return [(0.0, failure(GrammarRefused("no")), body)]
        return refuse(peer, message, body) if own == liar and when == "step" else [(0.0, message, body)]

    mesh.network.tamper = tamper
    if liar == "c":
        with pytest.raises(GrammarRefused):
            await generate(mesh.nodes["a"], new_session(COUNT, grammar="start: /.*/"))
    else:
        session = await answer_of(mesh, grammar="start: /.*/")
        assert session.recoveries == 1
        assert "evil" not in session.route.peers


# Opening


OPENINGS = {
    "a negative length": StageOpened(-1),
    "something else": ProbeReply(),
    "that the grammar is refused of who wants none": failure(GrammarRefused("no")),
}


@pytest.mark.parametrize("what", OPENINGS)
async def test_a_stage_that_opens_in_a_strange_way_is_not_used(mesh, autojump_clock, what):
    def open_strangely(own, _peer, message, body):
        strange = own == "evil" and isinstance(message, StageOpened)
        return [(0.0, OPENINGS[what] if strange else message, body)]

    mesh.network.tamper = open_strangely
    session = await answer_of(mesh)
    assert "evil" not in session.route.peers


async def test_a_stage_that_claims_rows_it_does_not_have_changes_no_token(mesh, autojump_clock):
    def boast(own, _peer, message, body):
        strange = own == "evil" and isinstance(message, StageOpened)
        return [(0.0, StageOpened(2**62) if strange else message, body)]

    mesh.network.tamper = boast
    await answer_of(mesh)


# What a stage is asked by others than its coordinator


async def tell(mesh, sender, receiver, message, body=b""):
    link = await mesh.network.nodes[sender].to(receiver)
    await link.send(message, body)


def opened(mesh, name):
    (stage,) = mesh.nodes[name].hosted._stages.values()
    return stage.opened


async def test_nobody_but_its_coordinator_and_its_neighbour_reaches_a_session(mesh, autojump_clock):
    """Steps, closing and opening in the name of another, by a node that knows the session's name."""
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), COUNT)
    session = new_session(COUNT)
    refused = []

    async def meddle():
        await trio.sleep(0.15)
        there = opened(mesh, "c")
        rows = StageStepMessage(there.session, there.attempt, there.index, 10**6, 0, 1)
        await tell(mesh, "reserve", "c", rows, bytes(WIDTH))
        link = await mesh.network.nodes["reserve"].to("c")
        for attempt in (there.attempt, there.attempt + 1):
            with pytest.raises(PeerMisbehaved, match="another coordinator") as caught:
                await link.ask(attrs_of(there, {"attempt": attempt}), timeout=5)
            refused.append(caught.value.code)
        await tell(mesh, "reserve", "c", CloseStage(there.session, 10**6))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meddle)
        assert await generate(mesh.nodes["a"], session) == expected
    assert session.recoveries == 0
    assert refused == ["peer_misbehaved"] * 2
    assert (stray(mesh, "step"), stray(mesh, "open_stage")) == (1, 2)
    assert misdeeds(mesh) == set(), "whoever knows a session's name could have others refused so"


WANTED = OpenStage(
    SessionId("reserve/" + "s" * 24), 1, "model", 1, BlockRange(4, 9), False, False, 100, "reserve", None
)
OF_ANOTHER = attrs_of(WANTED, {"session": SessionId("spare/" + "s" * 24)})
TOO_MUCH = {
    "blocks below those loaded": {"blocks": BlockRange(3, 9)},
    "blocks above those loaded": {"blocks": BlockRange(4, 10)},
    "a thousand blocks": {"blocks": BlockRange(0, 10**9)},
    "an embedding that is not here": {"blocks": None, "embedding": True},
    "a head that is not here": {"head": True, "sampling": SamplingParameters()},
    "more memory than there is": {"tokens": 2**60},
    "a model that is not here": {"model": "other weights of the same name"},
    "a next stage that does not exist": {"next": "nobody"},
    "a head that is not the last": {
        "blocks": BlockRange(9, 12),
        "head": True,
        "sampling": SamplingParameters(),
        "next": "a",
    },
}


async def test_a_stage_that_knows_a_session_cannot_open_it_first_where_it_may_go_next(nursery, autojump_clock):
    """It would be refused to the coordinator by every spare, until too many were lost."""
    mesh = Mesh(MemoryNetwork(nursery), nursery)
    for name, start, end, pace in (("a", 0, 4, 1e-4), ("evil", 4, 9, 1e-4), ("spare", 4, 9, 1e-3), ("c", 9, 12, 1e-4)):
        await mesh.add(name, start, end, pace=pace)
    refused = []

    async def open_first(wish):
        link = await mesh.network.nodes["evil"].to("spare")
        with pytest.raises(PeerMisbehaved, match="another coordinator") as caught:
            await link.ask(attrs_of(wish, {"previous": "evil", "next": None}), timeout=5)
        refused.append(caught.value)

    def tamper(own, peer, message, body):
        if isinstance(message, OpenStage) and (own, peer) == ("a", "evil"):
            mesh.nursery.start_soon(open_first, message)
        is_silent = own == "evil" and isinstance(message, StageStepMessage) and message.position > len(PROMPT) + AT
        return [] if is_silent else [(0.0, message, body)]

    mesh.network.tamper = tamper
    session = new_session(COUNT)
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), COUNT)
    assert await generate(mesh.nodes["a"], session) == expected
    assert session.recoveries == 1
    assert refused


@pytest.mark.parametrize("what", TOO_MUCH)
async def test_what_cannot_be_opened_is_refused_and_holds_nothing(mesh, autojump_clock, what):
    link = await mesh.network.nodes["reserve"].to("evil")
    mesh.nodes["evil"].hosted.model_of = known_model(mesh.nodes["evil"].hosted.model_of)
    with pytest.raises(MeshnodeError) as caught:
        await link.ask(attrs_of(WANTED, TOO_MUCH[what]), timeout=5)
    assert caught.value.code in {"invalid_request", "out_of_memory", "no_route", "peer_unreachable"}
    await trio.sleep(1)
    assert mesh.held()["evil"] == 0
    assert (await link.ask(WANTED, timeout=5)).message == StageOpened(0)


def known_model(model_of):
    return lambda model: model_of(model) if model == "model" else None


async def test_one_coordinator_cannot_take_every_place_of_a_node(mesh, autojump_clock):
    mesh.nodes["evil"].hosted.limit = 8
    greedy = await mesh.network.nodes["reserve"].to("evil")
    for number in range(4):
        await greedy.ask(attrs_of(WANTED, {"session": SessionId(f"reserve/{number:024}")}), timeout=5)
    with pytest.raises(Overloaded, match="4 of them for you"):
        await greedy.ask(WANTED, timeout=5)
    other = await mesh.network.nodes["spare"].to("evil")
    assert (await other.ask(OF_ANOTHER, timeout=5)).message == StageOpened(0)


async def test_steps_of_sessions_that_do_not_exist_are_counted(mesh, autojump_clock):
    for number in range(20):
        await tell(mesh, "reserve", "c", StageStepMessage(SessionId("x"), 1, 2, number, 0, 1), bytes(WIDTH))
    await trio.sleep(1)
    assert stray(mesh, "step") == 20
    await answer_of(mesh)


async def test_a_stage_that_is_closed_while_it_opens_holds_nothing(mesh, autojump_clock):
    """The coordinator's wish and its withdrawal arrive together, or while the link to the next stage is being opened."""
    link = await mesh.network.nodes["reserve"].to("evil")
    mesh.network.dialling = 0.2
    for turn, pause in enumerate((0.0, 1e-3, 0.1, 0.3)):
        for number in range(30 * turn, 30 * turn + 30):
            session = SessionId(f"reserve/{number:024}")
            await link.send(attrs_of(WANTED, {"session": session, "next": "c"}), exchange=1)
            await trio.sleep(pause)
            await link.send(CloseStage(session, 2))
        mesh.network.nodes["evil"].links.pop("c", None)
        await trio.sleep(1)
        assert mesh.held()["evil"] == 0


async def test_a_wish_that_its_withdrawal_has_overtaken_opens_nothing(mesh, autojump_clock):
    """As when a direct link has just taken the place of a relayed one; attempts that were not closed are opened."""
    old, new = (mesh.network.connect(mesh.network.nodes["reserve"], mesh.network.nodes["evil"]) for _ in range(2))
    await new.send(CloseStage(WANTED.session, 3))
    await new.send(CloseStage(WANTED.session, 2))  # an older one still
    await trio.sleep(0.1)
    for attempt in (1, 2):
        with pytest.raises(SessionLost, match="closed already"):
            await old.ask(attrs_of(WANTED, {"attempt": attempt}), timeout=5)
    assert mesh.held()["evil"] == 0
    assert (await old.ask(attrs_of(WANTED, {"attempt": 3}), timeout=5)).message == StageOpened(0)
    other = await mesh.network.nodes["spare"].to("evil")
    await other.send(CloseStage(WANTED.session, 4))
    await trio.sleep(1)
    assert mesh.held()["evil"] > 0, "nobody closes the sessions of others"


async def test_who_closes_more_than_there_is_has_nothing_of_others_forgotten(mesh, autojump_clock):
    honest, flooding = [await mesh.network.nodes[name].to("evil") for name in ("reserve", "spare")]
    await honest.send(CloseStage(WANTED.session, 2))
    for number in range(4200):
        await flooding.send(CloseStage(SessionId(f"spare/{number:024}"), 2))
        if number % 100 == 0:
            await trio.sleep(0.01)
    with pytest.raises(SessionLost, match="closed already"):
        await honest.ask(WANTED, timeout=5)
    with pytest.raises(SessionLost, match="closed already"):
        await flooding.ask(attrs_of(OF_ANOTHER, {"session": SessionId(f"spare/{4190:024}")}), timeout=5)


async def test_of_all_that_could_be_kept_for_a_new_attempt_one_is_and_the_others_end(mesh, autojump_clock):
    """A coordinator that opens the same work many times has no more stages here than are counted."""
    node = mesh.nodes["evil"]
    link = await mesh.network.nodes["reserve"].to("evil")
    for turn in range(10):
        for index in range(20):
            await link.send(attrs_of(WANTED, {"attempt": 2 * turn + 1, "index": index}), exchange=1)
        await link.send(attrs_of(WANTED, {"attempt": 2 * turn + 2, "index": 0}), exchange=1)
        await trio.sleep(0.1)
        assert len(node.executor.sessions) == len(node.hosted) == 1
    for attempt, index in ((30, 1), (25, 1)):  # what is refused loses none of those that are there
        await link.send(attrs_of(WANTED, {"attempt": attempt, "index": index}), exchange=1)
    await trio.sleep(0.1)
    assert len(node.executor.sessions) == len(node.hosted) == 1
    await link.send(CloseStage(WANTED.session, 100))
    await trio.sleep(1)
    assert mesh.held()["evil"] == 0


async def test_a_stage_that_looks_for_a_neighbour_hears_that_it_is_opened_anew(mesh, autojump_clock):
    """A neighbour that has died is dialled for a while; the coordinator knows already, and has another route."""
    link = await mesh.network.nodes["reserve"].to("evil")
    mesh.network.dialling = 60.0
    for attempt in (1, 2):
        await link.send(attrs_of(WANTED, {"attempt": attempt, "next": "nobody"}), exchange=attempt)
        await trio.sleep(0.1)
    opened = await link.ask(attrs_of(WANTED, {"attempt": 3}), timeout=1)
    assert opened.message == StageOpened(0)
    await link.send(CloseStage(WANTED.session, 4))
    await trio.sleep(1)
    assert mesh.held()["evil"] == 0


async def test_a_probe_is_answered_whatever_is_going_on(mesh, autojump_clock):
    link = await mesh.network.nodes["reserve"].to("evil")
    assert (await link.ask(Probe(), timeout=1)).message == ProbeReply()


# A coordinator that tells two honest stages two different things


LIARS = SessionId("liar/s")


@pytest.mark.parametrize("how", ["another before us", "a gap", "twice", "too many", "of another model"])
async def test_a_coordinator_has_no_honest_stage_accused_by_another(nursery, autojump_clock, how):
    mesh = Mesh(MemoryNetwork(nursery), nursery)
    for name, start, end in (("x", 0, 6), ("y", 6, 12), ("liar", 0, 12)):
        await mesh.add(name, start, end, pace=10.0 if (name, how) == ("y", "too many") else 1e-4)
    x, y = [await mesh.network.nodes["liar"].to(name) for name in ("x", "y")]
    first = OpenStage(LIARS, 1, "model", 0, BlockRange(0, 6), True, False, 100, "liar", "y")
    last = OpenStage(
        LIARS, 1, "model", 1, BlockRange(6, 12), False, True, 100, "x", None, sampling=SamplingParameters()
    )
    await x.ask(first, timeout=5)
    if how == "of another model":
        mesh.nodes["x"].executor.width = 2 * WIDTH
    await y.ask(attrs_of(last, {"previous": "liar"}) if how == "another before us" else last, timeout=5)
    forward_from = (2, 0) if how == "a gap" else ()

    async def steps(numbers):
        for number in numbers:
            message = StageStepMessage(LIARS, 1, 0, number, number - 1, 1, forward_from=forward_from)
            await x.send(message if number > 1 else attrs_of(message, {"forward_from": ()}), bytes(4))
            await trio.sleep(0.1)

    await steps(range(1, 30 if how == "too many" else 5))
    if how == "twice":
        await x.send(CloseStage(LIARS, 2))
        await trio.sleep(0.1)
        mesh.nodes["x"].hosted._closed = ClosedSessions()  # as when it has been a while
        await x.ask(first, timeout=5)
        await steps(range(1, 5))
    await trio.sleep(1)
    came = [message for own, peer, message, _ in mesh.network.seen if (own, peer) == ("x", "y")]
    assert len(came) > 1, "an honest stage did as it was told"
    told = [message for own, peer, message, _ in mesh.network.seen if (own, peer) == ("y", "liar")]
    assert misdeeds(mesh) == set()
    assert stray(mesh, "step") >= 4 or any(isinstance(each, StageFailed) for each in told)
