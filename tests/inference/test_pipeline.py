"""Sessions over several nodes: the same tokens as on one, whatever is lost on the way. In memory, on virtual time."""

import attrs
import pytest
import trio
from support.memory_mesh import MemoryNetwork
from support.toy_executor import toy_answer
from support.toy_mesh import BLOCKS, PROMPT, WISH, Mesh, generate, new_session
from support.toy_rings import ToyRings

from meshnode.errors import PeerUnreachable, SessionLost
from meshnode.inference.session import Session
from meshnode.types.generation import SamplingParameters
from meshnode.types.peers import Holding
from meshnode.wire.stage_messages import Answered, OpenStage, StageStepMessage


@pytest.fixture
async def mesh(nursery, request):
    """All goes by way of the daemons, unless a test wants it in rings too; see test_rings for more."""
    network = MemoryNetwork(nursery)
    return Mesh(network, nursery, rings=ToyRings(network) if getattr(request, "param", False) else None)


in_rings_too = pytest.mark.parametrize("mesh", [False, True], ids=["by daemons", "in rings"], indirect=True)


async def test_three_stages_give_the_tokens_of_one(mesh, autojump_clock):
    nodes = [await mesh.add(name, start, end) for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12))]
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    for node in nodes:
        session = new_session()
        assert await generate(node, session) == expected
        assert [str(stage.blocks) for stage in session.route.stages] == ["0:4", "4:9", "9:12"]
    await trio.sleep(1)
    assert set(mesh.held().values()) == {0}


@pytest.mark.parametrize("victim", ["b", "c"])
@pytest.mark.parametrize("moment", [1, 17, 59])
@pytest.mark.parametrize("how", ["kill", "freeze"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_a_lost_stage_costs_a_pause_not_the_answer(mesh, autojump_clock, victim, moment, how, temperature):
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12), ("spare", 4, 12)):
        await mesh.add(name, start, end, pace=1e-3 if name == "spare" else 1e-4)
    sampling = SamplingParameters(temperature=temperature, seed=7)
    expected = await toy_answer(BLOCKS, PROMPT, sampling, 60)
    session = new_session(temperature=temperature, seed=7)
    loss = {moment: lambda: mesh.kill(victim) if how == "kill" else mesh.network.freeze(victim)}
    assert await generate(mesh.nodes["a"], session, loss) == expected
    assert session.recoveries == 1
    assert session.pause < (1 if how == "kill" else 5)
    await trio.sleep(1)
    left = mesh.held()
    if how == "freeze":
        left.pop(victim)
    assert set(left.values()) == {0}


async def test_who_cannot_be_linked_with_costs_a_pause_and_nobody_else_is_blamed(mesh, autojump_clock, monkeypatch):
    """It has just been frozen, and nobody here knows; the stage of our own that is to send it rows waits for a link to it."""
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12), ("spare", 4, 9)):
        await mesh.add(name, start, end, pace=1e-3 if name == "spare" else 1e-4)
    known = type(mesh.network.nodes["a"])

    async def dial(self, peer, to=known.to):
        if peer == "b":
            await trio.sleep(10)
            raise PeerUnreachable("b did not answer within 10 s")
        return await to(self, peer)

    monkeypatch.setattr(known, "to", dial)
    session = new_session()
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    with trio.fail_after(10):
        assert await generate(mesh.nodes["a"], session) == expected
    assert session.recoveries == 1


@in_rings_too
async def test_survivors_keep_their_cache(mesh, autojump_clock):
    """Only the new stage, and those before it, compute again; those behind it go on with what they have."""
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12), ("spare", 4, 9)):
        await mesh.add(name, start, end, pace=1e-3 if name == "spare" else 1e-4)
    session = new_session()
    await generate(mesh.nodes["a"], session, {50: lambda: mesh.kill("b")})
    behind = mesh.nodes["c"].executor
    assert behind.rows <= 3 * (len(PROMPT) + 60 + 2)


@in_rings_too
async def test_a_stage_that_comes_back_is_waited_for(mesh, autojump_clock):
    """Nobody else has these blocks: the worker's return is the new fact."""
    for name, start, end in (("a", 0, 6), ("b", 6, 12)):
        await mesh.add(name, start, end)
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    session = new_session()
    assert await generate(mesh.nodes["a"], session, {20: mesh.nodes["b"].executor.crash}) == expected
    assert session.recoveries >= 1


@pytest.mark.parametrize(("here", "seconds"), [(True, 30.0), (False, 10.0)])
async def test_a_stage_that_loads_anew_before_the_first_token_is_waited_for(mesh, autojump_clock, here, seconds):
    """Placement brings it other blocks just as it is asked: nobody else has these, and a first load takes a while.

    Who coordinates has a part of the model, too, or goes by what the other says that it has on disk.
    """
    for name, start, end in (("a", 0, 6), ("b", 6, 12)):
        await mesh.add(name, start, end)
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    session, worker = new_session(), mesh.nodes["b"].executor
    worker.restart = seconds
    mesh.network.nodes["b"].holdings = (Holding("model", "toy", BLOCKS, (worker.blocks,), head=True),)
    mesh.nodes["a"].coordinator.is_wanted = lambda _: here

    def crash_when_asked(own, peer, message, body):
        if isinstance(message, OpenStage) and peer == "b" and message.attempt == 1:
            worker.crash()
        return [(0.0, message, body)]

    mesh.network.tamper = crash_when_asked
    assert await generate(mesh.nodes["a"], session) == expected
    assert session.recoveries


@in_rings_too
@pytest.mark.parametrize("dumb", [4, 12])
async def test_a_stage_that_was_only_slow_is_asked_again_when_there_is_no_other(mesh, autojump_clock, dumb):
    """It says nothing new of itself, as it has noticed nothing."""
    for name, start, end in (("a", 0, 6), ("b", 6, 12)):
        await mesh.add(name, start, end)
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    session = new_session()

    def freeze():
        mesh.network.freeze("b")
        mesh.nursery.start_soon(_thaw, mesh, dumb)

    assert await generate(mesh.nodes["a"], session, {20: freeze}) == expected
    assert session.recoveries >= 1
    assert session.pause < 4 * dumb + 6


async def _thaw(mesh, after):
    await trio.sleep(after)
    mesh.network.thaw("b")


@in_rings_too
async def test_no_route_left_ends_with_an_error_that_names_the_blocks(mesh, autojump_clock):
    for name, start, end in (("a", 0, 6), ("b", 6, 12)):
        await mesh.add(name, start, end)
    with pytest.raises(SessionLost, match="6:12"):
        await generate(mesh.nodes["a"], new_session(), {20: lambda: mesh.kill("b")})
    await trio.sleep(1)
    assert mesh.held() == {"a": 0}


@in_rings_too
async def test_a_client_that_leaves_frees_every_node_within_a_second(mesh, autojump_clock):
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12)):
        await mesh.add(name, start, end)
    with trio.CancelScope() as client:
        await generate(mesh.nodes["a"], new_session(300), {20: client.cancel})
    assert all(node.executor.sessions for node in mesh.nodes.values())
    await trio.sleep(1)
    assert set(mesh.held().values()) == {0}


async def test_boomerang_sends_no_token_to_others(mesh, autojump_clock):
    await mesh.add("a", 0, 2, boomerang=True, head=True)
    await mesh.add("b", 2, 8)
    await mesh.add("c", 8, 12)
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    session = new_session()
    assert await generate(mesh.nodes["a"], session) == expected
    for sender, receiver, message, body in mesh.network.seen:
        text = repr(message)
        assert "history=(" not in text.replace("history=()", ""), (sender, receiver)
        assert "token=TokenEvent" not in text, (sender, receiver)
        assert len(body) % 8 == 0


async def test_a_long_prompt_overlaps_the_stages(mesh, autojump_clock):
    """Three stages of equal work in a chain take about as long as one and a bit, not as three."""
    for name, start, end in (("a", 0, 4), ("b", 4, 8), ("c", 8, 12)):
        await mesh.add(name, start, end, pace=1e-3)
    session = Session(tuple(range(640)), 1, SamplingParameters(), frozenset())
    began = trio.current_time()
    await generate(mesh.nodes["a"], session, wish=attrs.evolve(WISH, tokens=700))
    assert trio.current_time() - began < 640 * 4 * 1e-3 * 1.2


@in_rings_too
async def test_a_loss_takes_no_token_from_a_reader_who_is_slow(mesh, autojump_clock):
    """A stage dies while its token is still being handed over: it is handed over once, and the answer goes on after it."""
    for name, start, end in (("a", 0, 4), ("b", 4, 12), ("spare", 4, 12)):
        await mesh.add(name, start, end, pace=1e-3 if name == "spare" else 1e-4)
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    session, taken = new_session(), []

    async def take(event):
        if len(taken) == 20:
            mesh.kill("b")
            await trio.sleep(1)
        taken.append(event.token)
        return True

    await mesh.nodes["a"].coordinator.run(session, WISH, take)
    assert taken == session.generated == list(expected)
    assert session.recoveries == 1


LONG = tuple(7 * i % 64 for i in range(700))


def long_session(more=(), asker=""):
    return Session((*LONG, *more), 20, SamplingParameters(), frozenset(), vocabulary=64, asker=asker)


async def test_a_prompt_that_begins_as_one_before_is_not_computed_again_at_any_stage(mesh, autojump_clock):
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12)):
        await mesh.add(name, start, end)
    first, second = long_session(), long_session((1, 2, 3))
    await generate(mesh.nodes["a"], first)
    rows = {name: node.executor.rows for name, node in mesh.nodes.items()}
    expected = await toy_answer(BLOCKS, second.prompt, SamplingParameters(), 20)
    assert await generate(mesh.nodes["a"], second) == expected
    assert (first.cached_tokens, second.cached_tokens) == (0, 512)
    for name, blocks in (("a", 4), ("b", 5), ("c", 3)):
        assert mesh.nodes[name].executor.rows - rows[name] == blocks * (703 - 512 + 19)


async def test_a_stage_that_has_not_seen_the_prompt_gets_it_from_those_that_have(mesh, autojump_clock):
    """The stages before the new one compute again, and so do those behind it: see what a liar leaves, in the next test."""
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12), ("spare", 4, 9)):
        await mesh.add(name, start, end, pace=1e-3 if name == "spare" else 1e-4)
    expected = await toy_answer(BLOCKS, LONG, SamplingParameters(), 20)
    assert await generate(mesh.nodes["a"], long_session()) == expected
    mesh.kill("b")
    await trio.sleep(5)
    for cached in (0, 512):
        session = long_session()
        assert await generate(mesh.nodes["a"], session) == expected
        assert session.cached_tokens == cached


@in_rings_too
async def test_what_a_liar_makes_others_keep_goes_with_it(mesh, autojump_clock):
    """No honest stage reads pages that rows of another route than its own have gone into."""
    for name, start, end in (("a", 0, 4), ("liar", 4, 9), ("c", 9, 12), ("spare", 4, 9)):
        await mesh.add(name, start, end, pace=1e-3 if name == "spare" else 1e-4)
    expected = await toy_answer(BLOCKS, LONG, SamplingParameters(), 20)
    lies = []

    def tamper(own, _peer, message, body):
        is_lie = own == "liar" and isinstance(message, StageStepMessage)
        lies.extend([message] * is_lie)
        return [(0.0, message, b"\x01" * len(body) if is_lie else body)]

    mesh.network.tamper = tamper
    assert await generate(mesh.nodes["a"], long_session(), {10: lambda: mesh.kill("liar")}) != expected
    assert lies
    for cached in (0, 512):
        session = long_session()
        assert await generate(mesh.nodes["a"], session) == expected
        assert session.cached_tokens == cached


async def test_what_a_stage_in_front_answers_late_is_no_lie_of_the_last(mesh, autojump_clock):
    """A chunk that nobody behind it lacks ends there, and the token after it may overtake the word of that."""
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12), ("spare", 0, 4), ("asker", 4, 5)):
        await mesh.add(name, start, end, pace=1e-3 if name in ("spare", "asker") else 1e-4)
    late = []

    def tamper(own, _peer, message, body):
        is_late = own == "spare" and isinstance(message, Answered)
        late.extend([message] * is_late)
        return [(0.25 if is_late else 0.0, message, body)]

    mesh.network.tamper = tamper
    session = new_session()
    expected = await toy_answer(BLOCKS, PROMPT, SamplingParameters(), 60)
    assert await generate(mesh.nodes["asker"], session, {30: lambda: mesh.kill("a")}) == expected
    assert (session.recoveries, mesh.evidence) == (1, [])
    assert late


async def test_coordinators_and_askers_do_not_find_each_others_pages(mesh, autojump_clock):
    for name, start, end in (("a", 0, 4), ("b", 4, 9), ("c", 9, 12)):
        await mesh.add(name, start, end)
    sessions = [long_session(), long_session(asker="peer x"), long_session(), long_session(asker="peer x")]
    for at, session in zip("aaba", sessions, strict=True):
        await generate(mesh.nodes[at], session)
    assert [session.cached_tokens for session in sessions] == [0, 0, 0, 512]
