"""Every message of a peer to its subsystem: counted, limited, never in the way of another's."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.lowlevel
import trio.testing
from support.messages import EXAMPLES

from meshnode.errors import PeerUnreachable
from meshnode.flow.mailbox import Mailbox
from meshnode.network.dispatcher import DispatcherResources, MessageDispatcher
from meshnode.network.stage_links import Received
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, Pulse
from meshnode.supervise.supervisor import Supervisor
from meshnode.types.evidence import Misdeed
from meshnode.types.ids import PeerId, SessionId
from meshnode.wire.control_messages import ControlMessage, Hello, IntroductionsWanted, Ping, Pong, TicketRequest
from meshnode.wire.failures import Failed
from meshnode.wire.stage_messages import DelegationFailed, Probe, StageMessage, StageStepMessage


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


class Link:
    """Where refusals go; a `mute` one takes none."""

    def __init__(self, name="peer", *, mute=False, gone=False):
        self.peer, self.closed, self.sent, self.waiting = PeerId(name), trio.Event(), [], 0
        self.mute, self.gone = mute, gone

    async def send(self, message, body=b"", exchange=0):
        self.waiting += 1
        await trio.sleep(1e9 if self.mute else 0)
        self.send_nowait(message, body, exchange)

    def send_nowait(self, message, body=b"", exchange=0):
        if self.gone:
            raise PeerUnreachable("gone")
        if self.mute:
            raise trio.WouldBlock
        self.sent.append((message, exchange))


@attrs.define
class Desk:
    """A dispatcher's channels; `stages` and `control` hold what has arrived."""

    resources: DispatcherResources
    pulse: Pulse
    stages: list = attrs.field(factory=list)
    control: list = attrs.field(factory=list)

    @asynccontextmanager
    async def dispatching(self, *, readers=("stages", "control")):
        async with trio.open_nursery() as nursery:
            for name in readers:
                nursery.start_soon(self._read, getattr(self.resources, name), getattr(self, name))
            await nursery.start(MessageDispatcher(self.resources, self.pulse).run)
            yield nursery
            nursery.cancel_scope.cancel()

    async def _read(self, mailbox, into):
        with mailbox.serve() as letters:
            async for letter in letters:
                into.append(letter.question.message)

    async def say(self, message, link=None, exchange=0):
        """Deliver as the links do: each kind through the mailbox of its plane."""
        resources = self.resources
        mailbox = resources.inbound_stages if isinstance(message, StageMessage) else resources.inbound
        await mailbox.tell(Received(link or Link(), exchange, message))

    def count(self, kind):
        return self.resources.metrics.network_messages_total.labels(kind=kind)._value.get()

    def evidence(self):
        found = []
        mailbox = self.resources.evidence
        with mailbox.serve() as letters:
            while mailbox.waiting():
                found.append(letters._inbox.receive_nowait().question)
        return found


@pytest.fixture
def desk():
    boxes = {
        "inbound": Mailbox("inbound", 256),
        "stages": Mailbox("stages", 64),
        "control": Mailbox("control", 64),
        "evidence": Mailbox("evidence", 64),
    }
    return Desk(DispatcherResources(**boxes, metrics=Metrics()), Pulse())


def step(number):
    return StageStepMessage(SessionId("s"), 1, 0, number, 0, 1)


LINKS_OWN = Hello | Ping | Pong | Failed


@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if not name.startswith(("bulk/", "ring/"))]
)  # those have doors of their own
async def test_every_message_is_counted_and_goes_to_its_subsystem(desk, autojump_clock, name):
    """No kind is unknown: what has no recipient is counted there, as what nobody waits for."""
    message = EXAMPLES[name][1]
    async with desk.dispatching():
        await desk.say(message)
        await trio.sleep(1)
    expected = desk.stages if isinstance(message, StageMessage) else desk.control
    assert expected == [message]
    assert len(desk.stages + desk.control) == 1
    assert desk.count(type(message).__struct_config__.tag) == 1
    assert isinstance(message, StageMessage | ControlMessage | LINKS_OWN)


async def test_messages_of_one_plane_keep_their_order(desk, autojump_clock):
    async with desk.dispatching():
        for number in range(1000):
            await desk.say(step(number))
        await trio.sleep(1)
    assert [message.step for message in desk.stages] == list(range(1000))


@pytest.mark.parametrize("dead", ["stages", "control"])
async def test_a_subsystem_that_takes_nothing_holds_up_no_other(desk, autojump_clock, dead):
    """And beyond what may wait, whoever sends to it waits too."""
    alive, ticket = "control" if dead == "stages" else "stages", EXAMPLES["control/ticket"][1]
    to_dead, to_alive = (step(0), ticket) if dead == "stages" else (ticket, step(0))
    async with desk.dispatching(readers=(alive,)):
        with trio.move_on_after(0.5):
            for _ in range(2000):
                await desk.say(to_dead)
        began = trio.current_time()
        for _ in range(100):
            await desk.say(to_alive)
        assert trio.current_time() - began < 0.5
        await trio.sleep(0.1)
        assert len(getattr(desk, alive)) == 100


async def test_a_question_to_a_subsystem_that_takes_nothing_is_refused_not_left_open(desk, autojump_clock):
    link = Link()
    async with desk.dispatching(readers=()):
        for _ in range(64):
            await desk.say(step(0))
        for late in range(3):
            await trio.sleep(late * 0.37)  # whenever it comes in the dispatcher's round
            await desk.say(Probe(), link, exchange=3 + late)
            await desk.say(EXAMPLES["stage/delegate"][1], link)
        await trio.sleep(10)
    delegations = [message for message, exchange in link.sent if exchange == 0]
    assert [type(message) for message in delegations] == 3 * [DelegationFailed]
    assert [(message.code, exchange) for message, exchange in link.sent if exchange] == [("overloaded", 3), ("overloaded", 4), ("overloaded", 5)]  # fmt: skip


async def test_a_subsystem_that_comes_back_within_a_second_misses_nothing(desk, autojump_clock):
    async with desk.dispatching(readers=()) as nursery:
        for number in range(100):
            await desk.say(step(number))
        await trio.sleep(0.9)
        nursery.start_soon(desk._read, desk.resources.stages, desk.stages)
        await trio.sleep(1)
    assert [message.step for message in desk.stages] == list(range(100))


async def test_who_asks_too_much_is_refused_and_noted_and_nobody_else_is(desk, autojump_clock):
    greedy, modest = Link("greedy"), Link("modest")
    async with desk.dispatching():
        for number in range(30):
            await desk.say(TicketRequest("bulk"), greedy, exchange=2 * number + 1)
            await trio.lowlevel.checkpoint()
        await desk.say(TicketRequest("bulk"), modest, exchange=1)
        await trio.lowlevel.checkpoint()
        await trio.sleep(0.001)
        assert len(desk.control) == 21
        assert [(message.code, exchange) for message, exchange in greedy.sent] == [("overloaded", number) for number in range(41, 60, 2)]  # fmt: skip
        assert modest.sent == []
        assert {(each.peer, each.misdeed) for each in desk.evidence()} == {("greedy", Misdeed.FLOOD)}
        await trio.sleep(1)
        await desk.say(TicketRequest("bulk"), greedy, exchange=1001)
        await trio.sleep(0.1)
        assert len(desk.control) == 22, "later it may ask again"


@pytest.mark.parametrize("name", ["record", "records", "introductions_wanted", "introductions", "ticket_request"])
async def test_what_makes_work_for_the_network_has_a_limit(desk, autojump_clock, name):
    async with desk.dispatching():
        for _ in range(1000):
            await desk.say(EXAMPLES[f"control/{name}"][1], Link("greedy"))
        await trio.sleep(0.1)
        assert 1 <= len(desk.control) <= 120
        assert {each.misdeed for each in desk.evidence()} == {Misdeed.FLOOD}


@pytest.mark.parametrize(
    ("name", "at_once", "told"),
    [
        ("open_stage", 200, Failed),
        ("probe", 50, Failed),
        ("delegate", 200, DelegationFailed),
        ("join_ring", 200, None),
        ("turn_ring", 2000, None),
    ],
)
async def test_what_sessions_need_has_a_limit_and_is_held_against_nobody(desk, autojump_clock, name, at_once, told):
    """Callers of an honest node make it send them. Whoever waits for an answer hears of each that is refused."""
    message, busy = EXAMPLES[f"stage/{name}"][1], Link("busy")
    async with desk.dispatching():
        for number in range(at_once + 100):
            await desk.say(message, busy, exchange=2 * number + 1 if told is Failed else 0)
        await trio.sleep(0.001)
        assert at_once - 9 <= len(desk.stages) < at_once + 9
        assert desk.evidence() == []
    refused = at_once + 100 - len(desk.stages)
    assert {(type(each), each.code) for each, _ in busy.sent} == (set() if told is None else {(told, "overloaded")})
    assert len(busy.sent) == (refused if told else 0)
    assert all(each.session == message.session for each, _ in busy.sent if told is DelegationFailed)


async def test_steps_have_no_limit_here_since_they_are_bounded_where_they_are_held(desk, autojump_clock):
    async with desk.dispatching():
        for number in range(2500):
            await desk.say(step(number))
        await trio.sleep(0.1)
    assert len(desk.stages) == 2500
    assert desk.evidence() == []


async def test_refusals_that_a_peer_does_not_read_are_not_piled_up(desk, autojump_clock):
    mute = Link("mute", mute=True)
    async with desk.dispatching() as nursery:
        for number in range(2000):
            await desk.say(Probe(), mute, exchange=2 * number + 1)
        await trio.sleep(1)
        assert mute.waiting <= 64
        assert len(nursery.child_tasks) < 70
        await desk.say(Probe(), Link("other"))
        await trio.sleep(1)
    assert desk.count("probe") == 2001


async def test_a_peer_that_leaves_before_its_refusal_disturbs_nobody(desk, autojump_clock):
    async with desk.dispatching():
        for number in range(100):
            await desk.say(Probe(), Link("gone", gone=True), exchange=2 * number + 1)
        await desk.say(step(7))
        await trio.sleep(1)
    assert desk.stages[-1] == step(7)


async def test_more_evidence_than_is_read_is_dropped_and_nothing_waits_for_it(desk, autojump_clock):
    async with desk.dispatching():
        for number in range(1000):
            await desk.say(TicketRequest("bulk"), Link("greedy"), exchange=2 * number + 1)
        await desk.say(IntroductionsWanted(3))
        await trio.sleep(1)
    assert desk.control[-1] == IntroductionsWanted(3)
    assert len(desk.evidence()) == 64


async def test_after_a_crash_the_next_incarnation_goes_on_with_what_waits(desk, autojump_clock):
    """Its policy is the supervisor's: a crash costs the message in hand and no other."""
    made = []

    def build():
        dispatcher = MessageDispatcher(desk.resources, desk.pulse)
        if not made:
            dispatcher._buckets = {Probe: Bomb()}
        made.append(dispatcher)
        return dispatcher

    supervisor = Supervisor([ChildSpec("MessageDispatcher", build)], health=HealthBoard())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk._read, desk.resources.stages, desk.stages)
        nursery.start_soon(supervisor.run)
        await supervisor.started.wait()
        await desk.say(step(1))
        await desk.say(Probe())
        for number in range(2, 50):
            await desk.say(step(number))
        await trio.sleep(2)
        assert [message.step for message in desk.stages] == list(range(1, 50))
        assert len(made) == 2
        nursery.cancel_scope.cancel()


class Bomb:
    def try_take(self, _peer):
        raise RuntimeError("a bug")


async def test_its_pulse_beats_while_it_has_nothing_to_do(desk, autojump_clock):
    async with desk.dispatching():
        for _ in range(30):
            await trio.sleep(1)
            assert desk.pulse.age() <= 1
