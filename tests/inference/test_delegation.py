"""Requests that others coordinate: whole routers over a network in memory, on virtual time."""

import re

import attrs
import pytest
import trio
from support.fake_executor import FakeExecutor
from support.router_mesh import PROMPT, open_routers, six_blocks

from meshnode.errors import NoRoute
from meshnode.flow.buckets import KeyedBuckets
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.calls import open_generations
from meshnode.inference.privacy import Privacy
from meshnode.network.dispatcher import DispatcherResources, MessageDispatcher
from meshnode.supervise.subsystem import Pulse
from meshnode.types.generation import Delta
from meshnode.wire.failures import Failed
from meshnode.wire.protocols import STAGE_MESSAGES
from meshnode.wire.stage_messages import (
    CancelDelegation,
    Delegate,
    DelegatedEvents,
    DelegationFailed,
    GrantEvents,
    OpenStage,
    Probe,
    ProbeReply,
    StageStepMessage,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return six_blocks(tmp_path_factory.mktemp("six"))


@pytest.fixture
async def mesh(model, nursery):
    """`b` and `c` are the model, `b2` can do what `b` does, and `asker` holds nothing."""
    async with open_routers(model) as mesh:
        await mesh.add("b", 0, 3)
        await mesh.add("c", 3, 6)
        await mesh.add("b2", 0, 3, pace=1e-3)
        await mesh.add("asker")
        yield mesh


@pytest.fixture
async def whole(model, autojump_clock):
    """The answer of a node that has everything."""
    async with open_routers(model) as mesh:
        return (await (await mesh.add("all", 0, 6)).ask()).text


def between(mesh, one, other):
    return [message for own, peer, message, _ in mesh.network.seen if {own, peer} == {one, other}]


async def test_who_holds_nothing_gets_the_same_answer(mesh, whole, autojump_clock):
    answer = await mesh.nodes["asker"].ask()
    assert answer.error is None
    assert answer.text == whole
    assert len(whole) > 20
    (started,) = answer.started
    assert re.fullmatch(r"b 0:3 > c 3:6 \(2 stages, [\d.]+ ms per token expected\)", started.route)
    assert answer.finished.recoveries == 0
    kinds = {type(message) for message in between(mesh, "asker", "b")}
    assert kinds <= {Delegate, DelegatedEvents, GrantEvents, CancelDelegation, Probe}
    assert between(mesh, "asker", "c") == []
    await trio.sleep(1)
    assert mesh.held() == {}


@pytest.mark.parametrize("how", ["kill", "freeze", "part"])
@pytest.mark.parametrize("after", [1, 25])
async def test_a_lost_coordinator_costs_a_pause_not_the_answer(mesh, whole, autojump_clock, how, after):
    losses = {
        "kill": lambda: mesh.kill("b"),
        "freeze": lambda: mesh.network.freeze("b"),
        "part": lambda: mesh.network.part("asker", "b"),
    }

    def on_text(text):
        if len(text) >= after and how in losses:
            losses.pop(how)()

    answer = await mesh.nodes["asker"].ask(on_text=on_text)
    assert answer.error is None
    assert answer.text == whole
    assert len(answer.started) == 1
    # Its successor may have to find out by itself that the same node is frozen, when it is also the fastest for a stage.
    assert answer.finished.recoveries in ((1, 2) if how == "freeze" else (1,))
    assert answer.finished.pause < (12 if how == "freeze" else 3)
    assert "b2" in answer.finished.route
    if how == "freeze":
        mesh.kill("b")  # links in memory have no heartbeat that would end those of a frozen node
    await trio.sleep(20)
    assert mesh.held() == {}


@pytest.mark.parametrize("who", ["b", "c"])
async def test_a_router_that_crashes_is_noticed_though_its_node_and_its_links_go_on(mesh, whole, autojump_clock, who):
    crashed = []

    def look(text):
        if len(text) > len(whole) / 3 and not crashed:
            crashed.append(who)
            mesh.nursery.start_soon(mesh.crash_router, who)

    began = trio.current_time()
    answered = await mesh.nodes["asker"].ask(on_text=look)
    assert (answered.error, answered.text) == (None, whole)
    assert crashed
    assert answered.at - began < 60


@pytest.mark.parametrize("name", ["six", "auto"])
async def test_a_model_whose_only_holder_starts_its_worker_again_is_waited_for(model, autojump_clock, name):
    """Nobody offers it meanwhile, and its name and its blocks are known still."""
    async with open_routers(model) as mesh:
        executor = (await mesh.add("single", 0, 6)).executors[0]
        asker = await mesh.add("asker")
        before, run = await asker.ask(name), executor.run

        async def load_slowly(*, task_status):
            await trio.sleep(8)
            await run(task_status=task_status)

        executor.run = load_slowly
        executor.crash()
        await trio.sleep(1)
        assert mesh.network.nodes["single"].offer().stages == ()
        answer = await asker.ask(name, count=10**6)  # more than it has room for, which nobody can say now
        assert (answer.error, answer.started[0].model) == (None, model.manifest.name)
        assert answer.text.startswith(before.text)
        unknown = await asker.ask("seven")
        assert unknown.error.code == "model_not_found"


async def test_a_coordinator_and_a_stage_may_be_lost_in_one_answer(mesh, whole, autojump_clock):
    await mesh.add("c2", 3, 6, pace=1e-3)
    plans = {10: lambda: mesh.kill("b"), 30: lambda: mesh.kill("c")}

    def on_text(text):
        for at in [at for at in plans if len(text) >= at]:
            plans.pop(at)()

    answer = await mesh.nodes["asker"].ask(on_text=on_text)
    assert answer.text == whole
    assert answer.finished.recoveries == 2


async def test_when_no_coordinator_is_left_the_answer_fails_clearly(mesh, autojump_clock):
    mesh.kill("b2")
    answer = await mesh.nodes["asker"].ask(on_text=lambda text: mesh.nodes.get("b") and mesh.kill("b"))
    assert answer.error.code in {"no_route", "session_lost"}
    assert "0:3" in str(answer.error)
    await trio.sleep(1)
    assert mesh.held() == {}


@pytest.mark.parametrize("who", ["client", "asker"])
async def test_when_nobody_waits_any_more_every_node_is_free_within_a_second(mesh, autojump_clock, who):
    """Its client has gone, or the asking node itself."""
    client, begun = trio.CancelScope(), trio.Event()

    async def ask():
        with client:
            await mesh.nodes["asker"].ask(count=700, on_text=lambda text: begun.set())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await begun.wait()
        assert set(mesh.held()) == {"b", "c"}
        if who == "client":
            client.cancel()
        else:
            mesh.kill("asker")
        await trio.sleep(1)
        assert mesh.held() == {}
        client.cancel()
    answer = await mesh.nodes["b"].ask()
    assert answer.error is None


async def test_who_waits_in_the_line_of_a_coordinator_leaves_it_too(mesh, autojump_clock):
    """The turn of a request that was withdrawn goes to the next."""
    node = await mesh.add("single", 0, 6, pace=1e-6, max_concurrent=1)

    async def ask_and_leave():
        with trio.move_on_after(0.001):
            await mesh.nodes["asker"].ask(count=700)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask_and_leave)
    await trio.sleep(0.5)
    assert (node.router._queue.active, node.router._queue.waiting) == (0, 0)
    assert mesh.held() == {}


async def test_a_reader_that_pauses_holds_no_turn_of_a_coordinator_and_loses_no_letter(model, autojump_clock):
    async with open_routers(model) as mesh:
        await mesh.add("single", 0, 6, executor=lambda *_: FakeExecutor(range(3, 250)), max_concurrent=1)
        for name in ("pausing", "other"):
            await mesh.add(name)
        expected = await mesh.nodes["other"].ask(count=500)
        assert expected.finished.usage.completion_tokens == 500
        paused, text = trio.Event(), []

        async def read_with_a_pause():
            node = mesh.nodes["pausing"]
            async with open_generations(node.mailbox, [node.request(count=500)]) as events:
                async for _, event in events:
                    if isinstance(event, Delta):
                        text.append(event.text)
                        if not paused.is_set():
                            paused.set()
                            await trio.sleep(50)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_with_a_pause)
            await paused.wait()
            with trio.fail_after(10):
                assert (await mesh.nodes["other"].ask(count=500)).text == expected.text
        assert "".join(text) == expected.text


# Who misbehaves


def tampering(name, change):
    def tamper(own, _peer, message, body):
        return [(late, each, body) for late, each in change(message)] if own == name else [(0.0, message, body)]

    return tamper


def later(message):
    return isinstance(message, DelegatedEvents) and message.delta is not None and len(message.delta.tokens) > 0


@pytest.mark.parametrize("more", [DelegatedEvents(""), DelegatedEvents("", delta=Delta("more"))], ids=["empty", "text"])
async def test_a_coordinator_that_floods_its_asker_is_left_and_the_asker_lives(mesh, whole, autojump_clock, more):
    """With messages that say nothing, or with more than it was granted."""

    def flood(message):
        return [(0.0, message), *([(0.0, attrs.evolve(more, session=message.session))] * 500 if later(message) else [])]

    mesh.network.tamper = tampering("b", flood)
    with trio.fail_after(100):
        answer = await mesh.nodes["asker"].ask()
    assert answer.finished.recoveries >= 1
    assert "b2" in answer.finished.route
    mesh.network.tamper = tampering("nobody", None)
    await trio.sleep(100)
    assert (await mesh.nodes["asker"].ask()).text == whole


FAILURES = {
    "no_route": None,
    "unavailable": None,
    "overloaded": None,
    "internal": None,
    "code of 2030": "unavailable",
    "invalid_request": "invalid_request",
    "context_length_exceeded": "context_length_exceeded",
}


@pytest.mark.parametrize("code", FAILURES)
async def test_what_another_could_do_is_asked_of_another_and_what_nobody_can_is_told(mesh, whole, autojump_clock, code):
    def fail(message):
        return [
            (0.0, DelegationFailed(message.session, code, "no") if isinstance(message, DelegatedEvents) else message)
        ]

    mesh.network.tamper = tampering("b", fail)
    answer = await mesh.nodes["asker"].ask()
    if FAILURES[code] is None:
        assert answer.text == whole
        assert "b2" in answer.started[0].route
    else:
        assert answer.error.code == FAILURES[code]


async def test_events_of_a_delegation_that_nobody_waits_for_are_counted(mesh, autojump_clock):
    link = await mesh.network.nodes["c"].to("asker")
    for _ in range(7):
        await link.send(DelegatedEvents("nobody's", delta=Delta("psst", (), (1,))))
    await trio.sleep(1)
    metrics = mesh.nodes["asker"].resources.metrics
    assert metrics.inference_stray_messages_total.labels(kind="delegated_events")._value.get() == 7


async def test_nobody_can_speak_for_the_coordinator(mesh, whole, autojump_clock):
    """Events and an end in the name of a delegation that another serves."""
    link = await mesh.network.nodes["c"].to("asker")

    async def meddle():
        await trio.sleep(0.01)
        name = between(mesh, "asker", "b")[0].session
        for _ in range(100):
            await link.send(DelegatedEvents(name, delta=Delta("LIES", (), (1,))))
            await link.send(DelegationFailed(name, "engine", "it is over"))
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meddle)
        answer = await mesh.nodes["asker"].ask()
    assert answer.text == whole
    assert answer.finished.recoveries == 0


async def test_requests_are_not_handed_round_for_ever(mesh, autojump_clock):
    """However often their sender says that they have not been handed on."""
    mesh.network.tamper = tampering(
        "asker",
        lambda message: (
            [(0.0, type(message)(message.session, message.request, 64, (), -(10**9)))]
            if isinstance(message, Delegate)
            else [(0.0, message)]
        ),
    )
    await mesh.nodes["asker"].ask()
    handed = [message for _, _, message, _ in mesh.network.seen if isinstance(message, Delegate)]
    assert len(handed) <= 3
    assert all(message.hops <= 2 for message in handed)


# Fairness


async def test_the_line_waits_instead_of_refusing_and_no_peer_fills_it_for_the_others(mesh, autojump_clock):
    """Turns go round among the nodes that ask: one request of a modest one is not behind thirty of a greedy one."""
    mesh.kill("b2")
    await mesh.add("modest")
    answers, modest = [], []

    async def ask(name, into):
        into.append(await mesh.nodes[name].ask(count=15))

    for name in ("asker", "modest"):
        mesh.nodes[name].router._queue.max_active = 100
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(ask, "asker", answers)
        await trio.sleep(0.01)
        nursery.start_soon(ask, "modest", modest)
    assert [answer.error for answer in (*answers, *modest)] == [None] * 31
    assert len({answer.text for answer in (*answers, *modest)}) == 1
    earlier = sum(answer.at < modest[0].at for answer in answers)
    assert earlier <= 4, "two turns at once, and those that were running"


async def behind_dispatcher(mesh, name, limit):
    """Have all that comes to a node pass a dispatcher that takes so many delegations (per second, at once) of one peer."""
    known = mesh.network.nodes[name]
    boxes = [Mailbox("inbound", 256), known.received, Mailbox("control", 64), Mailbox("evidence", 64)]
    resources = DispatcherResources(*boxes, mesh.nodes[name].resources.metrics)
    dispatcher = MessageDispatcher(resources, Pulse())
    dispatcher._buckets[Delegate] = KeyedBuckets(*limit)
    known.received = resources.inbound_stages
    await mesh.nursery.start(dispatcher.run)
    return resources.evidence


@pytest.mark.parametrize(("spare", "seconds"), [(False, 10), (True, 2)])
async def test_more_than_a_coordinator_takes_goes_elsewhere_or_waits_and_is_held_against_nobody(
    model, autojump_clock, spare, seconds
):
    """As vectors of many short texts are made: some at a time, each done within milliseconds."""
    async with open_routers(model) as mesh:
        await mesh.add("single", 0, 6, pace=1e-6)
        await mesh.add("asker", max_concurrent=8)
        if spare:
            await mesh.add("spare", 0, 6, pace=1e-4)
        evidence = await behind_dispatcher(mesh, "single", (10, 5))
        answers = []

        async def ask():
            answers.append(await mesh.nodes["asker"].ask(count=2))

        with trio.fail_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(24):
                    nursery.start_soon(ask)
        assert [(answer.error, answer.finished.recoveries) for answer in answers] == [(None, 0)] * 24
        assert len({answer.text for answer in answers}) == 1
        assert any(isinstance(message, DelegationFailed) for message in between(mesh, "asker", "single"))
        assert evidence.waiting() == 0


async def test_who_says_that_it_is_asked_too_often_whether_it_lives_does_live(model, autojump_clock):
    """The coordinator to its asker, and a stage to the coordinator."""
    async with open_routers(model) as mesh:
        for name, start, end in (("b", 0, 3), ("c", 3, 6), ("asker", 0, 0)):
            await mesh.add(name, start, end)
        mesh.nodes["c"].executors[0].pace = 0.1  # a thousand times slower than it says
        refused = []

        def refuse(own, peer, message, body):
            if isinstance(message, ProbeReply):
                refused.append((own, peer))
                message = Failed("overloaded", "too many at once; try again in 1 s")
            return [(0.0, message, body)]

        mesh.network.tamper = refuse
        answer = await mesh.nodes["asker"].ask(count=2)
        assert (answer.error, answer.finished.recoveries) == (None, 0)
        assert {("b", "asker"), ("c", "b")} <= set(refused)


# Privacy


async def asked_nodes(mesh):
    return {peer for _, peer, message, _ in mesh.network.seen if isinstance(message, Delegate | OpenStage)}


@pytest.mark.parametrize("rule", Privacy)
async def test_the_rule_of_the_asker_holds_at_whoever_coordinates_for_it(model, autojump_clock, rule):
    """`near` and `close` are on the local network; `far` is not, and is so fast that it would be chosen."""
    async with open_routers(model) as mesh:
        await mesh.add("near", 0, 3)
        await mesh.add("close", 3, 6, pace=1e-2)
        await mesh.add("far", 3, 6, pace=1e-6)
        mesh.network.lans.append({"near", "close", "asker"})
        asker = await mesh.add("asker", privacy=rule)
        answer = await asker.ask()
        used = await asked_nodes(mesh) - {"asker"}
        if rule is Privacy.THIS_NODE_ONLY:
            assert isinstance(answer.error, NoRoute)
            assert used == set()
        else:
            assert answer.error is None
            assert used == {Privacy.ANYONE: {"near", "far"}, Privacy.POOL_AND_LAN: {"near", "close"}}[rule]


async def test_the_rule_of_the_coordinator_holds_too(model, autojump_clock):
    async with open_routers(model) as mesh:
        await mesh.add("near", 0, 3, privacy=Privacy.POOL_AND_LAN)
        await mesh.add("close", 3, 6, pace=1e-2)
        await mesh.add("far", 3, 6, pace=1e-6)
        mesh.network.lans.append({"near", "close", "asker"})
        answer = await (await mesh.add("asker")).ask()
        assert answer.error is None
        assert await asked_nodes(mesh) == {"near", "close"}


async def test_a_coordinator_with_a_leg_in_a_second_network_asks_nobody_there(model, autojump_clock):
    """Not at first and not after a loss; `far` is a neighbour of the coordinator and so fast that it would be chosen."""
    async with open_routers(model) as mesh:
        await mesh.add("near", 0, 3)
        await mesh.add("close", 3, 6, pace=1e-3)
        await mesh.add("close2", 3, 6, pace=1e-2)
        await mesh.add("far", 3, 6, pace=1e-6)
        mesh.network.lans += [{"near", "close", "close2", "asker"}, {"near", "far"}]
        asker = await mesh.add("asker", privacy=Privacy.POOL_AND_LAN)
        lost = []

        def on_text(text):
            if len(text) > 20 and not lost:
                lost.append(mesh.kill("close"))

        answer = await asker.ask(on_text=on_text)
        assert (answer.error, answer.finished.recoveries) == (None, 1)
        assert await asked_nodes(mesh) - {"asker"} == {"near", "close", "close2"}
        mesh.kill("close2")
        answer = await asker.ask()
        assert isinstance(answer.error, NoRoute), "better no answer than one that others have seen"
        assert "far" not in await asked_nodes(mesh)
        assert (await mesh.nodes["near"].ask()).error is None, "its own requests may go there"


def frames(mesh):
    """All bytes that go from node to node."""
    return [
        (own, peer, message, STAGE_MESSAGES.to_frame(message, body)) for own, peer, message, body in mesh.network.seen
    ]


async def test_boomerang_frames_have_neither_text_nor_tokens_in_them(model, whole, autojump_clock):
    """With a loss on the way, since a replay sends the whole conversation again."""
    async with open_routers(model) as mesh:
        # Embedding and head are here, and the blocks between them elsewhere.
        await mesh.add("b", 1, 4)
        await mesh.add("c", 4, 6)
        await mesh.add("c2", 4, 6, pace=1e-3)
        mine = await mesh.add("mine", 0, 1, boomerang=True, ends=True)
        lost = []

        def on_text(text):
            if len(text) > 20 and not lost:
                lost.append(mesh.kill("c"))

        answer = await mine.ask(on_text=on_text)
        assert answer.error is None, str(answer.error)
        assert answer.text == whole
        assert answer.finished.recoveries == 1
        assert {"b", "c2"} <= {
            peer for _, peer, message, _ in mesh.network.seen if isinstance(message, StageStepMessage)
        }
        encoded = mine.resources.models.loaded.value[model.manifest.id].assets.tokenizer.encode(PROMPT)
        for own, peer, message, frame in frames(mesh):
            where = (own, peer, type(message).__name__)
            for text in (PROMPT, whole):
                pieces = {text[at : at + 6].encode() for at in range(len(text) - 6)}
                assert not [piece for piece in pieces if piece in frame], where
            for at in range(len(encoded) - 3):
                few = encoded[at : at + 3]
                for size in (1, 2, 4, 8):
                    packed = b"".join(token.to_bytes(size, order) for token in few for order in ("little",))
                    assert packed not in frame, where
            if isinstance(message, OpenStage):
                assert (message.history, message.sampling, message.embedding, message.head) == ((), None, False, False)


async def test_without_boomerang_the_same_look_does_find_tokens(mesh, autojump_clock):
    """The test above can fail: what it looks for is there when a node hands the request on."""
    await mesh.nodes["asker"].ask()
    assert any(PROMPT[:6].encode() in frame for _, _, _, frame in frames(mesh))
