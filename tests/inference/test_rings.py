"""Executors that hand rows on among themselves: the same text, whoever is lost, breaks a link or reads slowly."""

from itertools import product

import pytest
import trio
from support.ring_mesh import COUNT, THREE, expected, open_ring_mesh
from support.toy_executor import WIDTH, toy_answer
from support.toy_mesh import BLOCKS, PROMPT, WISH, generate, new_session

from meshnode.inference.session import Session
from meshnode.types.generation import SamplingParameters
from meshnode.wire.ring_messages import Lap, RingDoor
from meshnode.wire.stage_messages import Answered, JoinRing, OpenStage


@pytest.fixture
async def mesh(nursery):
    return open_ring_mesh(nursery)


# Answers


@pytest.mark.parametrize("bounds", [(0, 6, 12), (0, 4, 9, 12), (0, 2, 4, 7, 9, 12)])
async def test_what_goes_round_by_itself_gives_the_tokens_of_one(mesh, autojump_clock, bounds):
    """All but the first few rows, whoever asks; and each row once."""
    names = "abcde"[: len(bounds) - 1]
    await mesh.add_all(*zip(names, bounds, bounds[1:], strict=False))
    for asker in (names[0], names[-1]):
        mesh.rings.laps.clear()
        session = new_session(COUNT)
        assert await generate(mesh.nodes[asker], session) == await expected()
        assert session.recoveries == 0
        assert len(names) * (COUNT - 6) < len(mesh.rings.laps) < len(names) * COUNT
        assert len({(own, lap.position) for own, _, lap, _ in mesh.rings.laps}) == len(mesh.rings.laps)
        await mesh.assert_all_is_free()


async def test_many_answers_at_once_do_not_mix(mesh, autojump_clock):
    await mesh.add_all(*THREE)
    sessions = [new_session(COUNT, seed=seed, temperature=0.8) for seed in range(6)]
    async with trio.open_nursery() as nursery:
        for asker, session in zip("abcabc", sessions, strict=True):
            nursery.start_soon(generate, mesh.nodes[asker], session)
    for seed, session in enumerate(sessions):
        sampling = SamplingParameters(seed=seed, temperature=0.8)
        assert session.generated == await toy_answer(BLOCKS, PROMPT, sampling, COUNT)
    await mesh.assert_all_is_free()


async def test_an_answer_too_short_for_a_ring_asks_for_no_door(mesh, autojump_clock):
    await mesh.add_all(*THREE)
    assert await generate(mesh.nodes["a"], new_session(7)) == await expected(7)
    assert [message.ring for message in mesh.sent(OpenStage)] == [False] * 2
    assert not mesh.sent(JoinRing)
    await generate(mesh.nodes["a"], new_session(8))
    assert len(mesh.sent(JoinRing)) == 2


@pytest.mark.parametrize("without", ["a", "b", "c"])
async def test_a_peer_that_gives_no_door_is_reached_by_way_of_the_daemons(mesh, autojump_clock, without):
    for name, start, end in THREE:
        await mesh.add(name, start, end, **({"rings": None} if name == without else {}))
    session = new_session(COUNT)
    assert await generate(mesh.nodes["a"], session) == await expected()
    assert session.recoveries == 0
    assert not mesh.sent(JoinRing)
    assert not mesh.rings.laps
    await mesh.assert_all_is_free()


# How an answer ends


async def test_a_slow_reader_is_never_further_behind_than_the_window(mesh, autojump_clock):
    await mesh.add_all(*THREE)
    session, ahead = new_session(200), []

    async def take(_event):
        await trio.sleep(1 if len(session.generated) % 20 == 0 else 0)
        (head,) = mesh.nodes["c"].executor.sessions.values()
        ahead.append(head.length + 1 - session.length)
        return True

    await mesh.nodes["a"].coordinator.run(session, WISH, take)
    assert session.generated == await expected(200)
    assert 32 < max(ahead) <= 64


@pytest.mark.parametrize("moment", [1, 4, 20])
async def test_a_reader_that_wants_no_more_frees_every_node(mesh, autojump_clock, moment):
    await mesh.add_all(*THREE)
    session = new_session(300)

    async def take(_event):
        return len(session.generated) < moment

    await mesh.nodes["a"].coordinator.run(session, WISH, take)
    assert session.generated == await expected(moment)
    await mesh.assert_all_is_free()


async def test_an_end_token_ends_what_goes_round(mesh, autojump_clock):
    await mesh.add_all(*THREE)
    whole = await expected()
    end = whole[25]
    session = Session(PROMPT, COUNT, SamplingParameters(), frozenset({end}), vocabulary=64)
    assert await generate(mesh.nodes["a"], session) == whole[: whole.index(end) + 1]
    await mesh.assert_all_is_free()


# Losses


@pytest.mark.parametrize(("how", "moment"), [*product(("kill", "freeze"), (1, 17, 59)), ("crash", 17)])
@pytest.mark.parametrize(("victim", "asker"), [("a", "c"), ("b", "a"), ("c", "a")])
async def test_a_lost_stage_costs_a_pause_not_the_answer(mesh, autojump_clock, how, moment, victim, asker):
    await mesh.add_all(*THREE)
    start, end = next((start, end) for name, start, end in THREE if name == victim)
    await mesh.add("spare", start, end, pace=1e-3)
    loss = {
        "kill": lambda: mesh.kill(victim),
        "freeze": lambda: mesh.network.freeze(victim),
        "crash": lambda: mesh.nodes[victim].executor.crash(),
    }[how]
    session = new_session(COUNT)
    assert await generate(mesh.nodes[asker], session, {moment: loss}) == await expected()
    assert session.recoveries == 1
    assert "spare" in session.route.peers
    assert session.pause < (5 if how == "freeze" else 1)
    if moment < 50:
        assert any(own == "spare" for own, _, _, _ in mesh.rings.laps), "the new stage has a ring too"
    await mesh.assert_all_is_free(but={victim} if how == "freeze" else ())


@pytest.mark.parametrize(("link", "moment"), [("ab", 17), ("bc", 3), ("bc", 17), ("bc", 59), ("ca", 17)])
async def test_workers_that_lose_each_other_cost_no_stage(mesh, autojump_clock, link, moment):
    """The same route goes on by way of the daemons, and nobody is thought the worse of."""
    await mesh.add_all(*THREE)
    await mesh.add("spare", 4, 12, pace=1e-3)
    session, seen, began = new_session(COUNT), [], trio.current_time()

    def broken():
        mesh.rings.part(*link)
        seen.append((session.route, len(mesh.rings.laps)))

    assert await generate(mesh.nodes["a"], session, {moment: broken}) == await expected()
    assert trio.current_time() - began < 1
    ((route, laps),) = seen
    assert session.recoveries == 0
    assert session.route is route
    assert len(mesh.rings.laps) <= laps + 2, "what was on its way"
    assert not mesh.evidence
    await mesh.assert_all_is_free()
    mesh.rings.laps.clear()
    assert await generate(mesh.nodes["a"], new_session(COUNT)) == await expected()
    assert mesh.rings.laps, "the next answer goes round again"


async def test_nodes_that_lose_each_other_cost_a_stage(mesh, autojump_clock):
    """Their daemons cannot reach each other either."""
    await mesh.add_all(*THREE)
    await mesh.add("spare", 4, 12, pace=1e-3)
    session = new_session(COUNT)
    assert await generate(mesh.nodes["a"], session, {17: lambda: mesh.network.part("b", "c")}) == await expected()
    assert session.recoveries == 1
    assert "spare" in session.route.peers
    await mesh.assert_all_is_free()


async def test_a_ring_that_never_comes_about_changes_nothing(mesh, autojump_clock):
    """One door leads nowhere: the same attempt goes on, without a lap."""
    await mesh.add_all(*THREE)

    def tamper(_own, _peer, message, body):
        if isinstance(message, JoinRing) and message.index == 1:
            door = RingDoor(("c",), 1, b"", b"no token that was given")
            message = JoinRing(message.session, message.attempt, message.index, door, message.tells)
        return [(0.0, message, body)]

    mesh.network.tamper = tamper
    session = new_session(COUNT)
    assert await generate(mesh.nodes["a"], session) == await expected()
    assert session.recoveries == 0
    assert {message.attempt for message in mesh.sent(OpenStage)} == {1}
    assert not mesh.rings.laps
    await mesh.assert_all_is_free()


# What others see


async def test_no_token_travels_where_both_ends_are_the_askers(mesh, autojump_clock):
    await mesh.add("a", 0, 2, boomerang=True, head=True)
    await mesh.add_all(("b", 2, 8), ("c", 8, 12))
    session = new_session(COUNT)
    assert await generate(mesh.nodes["a"], session) == await expected()
    ways = {(own, peer) for own, peer, _, _ in mesh.rings.laps}
    assert ways == {("a", "b"), ("b", "c"), ("c", "a"), ("a", "a")}
    for own, peer, message, body in mesh.network.seen:
        if isinstance(message, Lap):
            assert len(body) == WIDTH, "a row"
            assert own != peer
        assert not isinstance(message, Answered) or message.token is None
