"""Links over streams in memory, on virtual time."""

import math
import struct

import pytest
import trio
import trio.testing
from support.link_pairs import TERMS, Delayed, RawEnd, answer_probes, linked, make_link, one_link
from support.messages import EXAMPLES

from meshnode.errors import NoRoute, PeerMisbehaved, PeerRefused, PeerUnreachable
from meshnode.network.links import LinkSettings
from meshnode.types.ids import PeerId, SessionId
from meshnode.wire.control_messages import Hello, Ping, Pong
from meshnode.wire.failures import Failed
from meshnode.wire.stage_messages import (
    CancelDelegation,
    CloseStage,
    GrantEvents,
    Probe,
    ProbeReply,
    StageOpened,
    StageStepMessage,
)
from meshnode.wire.versions import Feature, Terms

S = SessionId("s")
STEP = StageStepMessage(S, 1, 0, 1, 0, 1)


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


async def drop(inbound):
    """Take it."""


async def wait_for_ever(inbound):
    await trio.sleep_forever()


# Questions and answers


async def test_both_sides_ask_and_each_gets_its_own_answers(autojump_clock):
    async def here(inbound):
        await inbound.link.send(StageOpened(1), exchange=inbound.exchange)

    async def there(inbound):
        await inbound.link.send(StageOpened(2), b"", inbound.exchange)

    async with linked(here, there) as (left, right), trio.open_nursery() as nursery:

        async def ask(link, expected):
            for _ in range(20):
                assert (await link.ask(Probe(), timeout=1)).message == StageOpened(expected)

        for _ in range(3):
            nursery.start_soon(ask, left, 2)
            nursery.start_soon(ask, right, 1)


async def test_answers_find_their_questions_in_any_order(autojump_clock):
    waiting = []

    async def backwards(inbound):
        waiting.append(inbound)
        if len(waiting) == 3:
            for each in reversed(waiting):
                await each.link.send(StageOpened(each.message.count), exchange=each.exchange)

    got = {}
    async with linked(drop, backwards) as (link, _), trio.open_nursery() as nursery:

        async def ask(count):
            got[count] = (await link.ask(GrantEvents(S, count), timeout=5)).message

        for count in range(3):
            nursery.start_soon(ask, count)
    assert got == {count: StageOpened(count) for count in range(3)}


async def test_messages_arrive_whole_in_order_with_their_bodies_and_their_sender(autojump_clock):
    got = []

    async def deliver(inbound):
        got.append((inbound.peer, inbound.message.step, inbound.body))

    async with linked(drop, deliver) as (link, _):
        for step in range(100):
            await link.send(StageStepMessage(S, 1, 0, step, 0, 1), bytes([step]) * step)
        await trio.sleep(1)
    assert got == [("here", step, bytes([step]) * step) for step in range(100)]


async def test_an_answer_that_is_a_failure_raises_the_error_it_names(autojump_clock):
    async def refuse(inbound):
        await inbound.link.send(Failed("no_route", "not with these peers"), exchange=inbound.exchange)

    async with linked(drop, refuse) as (link, _):
        with pytest.raises(NoRoute, match="not with these peers"):
            await link.ask(Probe(), timeout=1)


async def test_a_failure_with_a_code_of_another_version_is_a_refusal(autojump_clock):
    async def refuse(inbound):
        await inbound.link.send(Failed("code of 2030", "no"), exchange=inbound.exchange)

    async with linked(drop, refuse) as (link, _):
        with pytest.raises(PeerRefused):
            await link.ask(Probe(), timeout=1)


async def test_no_answer_in_time_is_an_unreachable_peer_and_the_late_answer_harms_nobody(autojump_clock):
    async def slowly(inbound):
        await trio.sleep(2)
        await answer_probes(inbound)

    async with linked(drop, slowly) as (link, _):
        with pytest.raises(PeerUnreachable, match="did not answer within 1"):
            await link.ask(Probe(), timeout=1)
        await trio.sleep(3)
        assert (await link.ask(Probe(), timeout=5)).message == ProbeReply()


async def test_an_answer_to_a_question_that_was_never_asked_ends_the_link(autojump_clock):
    async with one_link() as (link, raw):
        await raw.send(ProbeReply(), exchange=1)
        await link.closed.wait()
        assert isinstance(link.ended_by, PeerMisbehaved)
        assert "never asked" in str(link.ended_by)


async def test_a_second_answer_to_the_same_question_is_dropped(autojump_clock):
    async with one_link() as (link, raw), trio.open_nursery() as nursery:

        async def ask():
            assert (await link.ask(Probe(), timeout=5)).message == StageOpened(1)

        nursery.start_soon(ask)
        await trio.sleep(1)
        await raw.send(StageOpened(1), exchange=1)
        await raw.send(StageOpened(2), exchange=1)
        await trio.sleep(1)
        assert not link.closed.is_set()


async def test_questions_in_flight_fail_at_once_when_the_link_ends(autojump_clock):
    async with linked(drop, wait_for_ever) as (link, other), trio.open_nursery() as nursery:

        async def ask():
            with pytest.raises(PeerUnreachable, match="has ended"):
                await link.ask(Probe(), timeout=math.inf)

        for _ in range(5):
            nursery.start_soon(ask)
        await trio.sleep(1)
        begun = trio.current_time()
        other.close("enough")
        await link.closed.wait()
        with pytest.raises(PeerUnreachable):
            await link.ask(Probe(), timeout=60)
        assert trio.current_time() == begun


# Heartbeats


async def test_round_trips_are_measured(autojump_clock):
    def streams():
        here, there = trio.testing.memory_stream_pair()
        return Delayed(here, 0.03), Delayed(there, 0.05)

    async with linked(streams=streams) as (link, _):
        assert link.rtt is None
        await trio.sleep(60)
        assert link.rtt == pytest.approx(0.08)


async def test_a_peer_that_says_nothing_is_gone_after_three_heartbeats(autojump_clock):
    async with one_link() as (link, _):
        begun = trio.current_time()
        await link.closed.wait()
        assert trio.current_time() - begun == 15
        assert isinstance(link.ended_by, PeerUnreachable)


async def test_missed_heartbeats_are_counted_and_forgotten_when_the_peer_is_back(autojump_clock):
    async with one_link() as (link, raw):
        await trio.sleep(11)
        assert link.missed == 2
        await raw.send(GrantEvents(S, 1))
        await trio.sleep(0.1)
        assert link.missed == 0
        await trio.sleep(10)
        assert not link.closed.is_set()


async def test_a_half_open_connection_that_swallows_everything_is_noticed(autojump_clock):
    class Abyss:
        async def send_all(self, data):
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes=None):
            await trio.sleep_forever()

        async def aclose(self):
            await trio.lowlevel.checkpoint()

    link = make_link(Abyss())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, drop)
            with pytest.raises(PeerUnreachable, match="no sign of life"):
                await link.ask(Probe(), timeout=50)


async def test_who_is_busy_with_a_message_is_not_dead_and_does_not_think_the_other_is(autojump_clock):
    async with linked(drop, wait_for_ever) as (link, other):
        await link.send(Probe())
        await trio.sleep(300)
        assert not link.closed.is_set()
        assert not other.closed.is_set()


async def test_a_ping_is_answered_before_what_waits_to_be_sent(autojump_clock):
    async with one_link(streams=trio.testing.lockstep_stream_pair) as (link, raw):
        await raw.read()  # its first ping
        for _ in range(100):
            await link.send(STEP, bytes(30_000))
        await raw.send(Ping(7))
        await trio.sleep(0.1)
        while Pong(7) not in [envelope.message for envelope in raw.messages]:
            await raw.read()
        assert len(raw.messages) < 30


async def test_an_old_pong_measures_nothing(autojump_clock):
    async with one_link() as (link, raw):
        await trio.sleep(6)
        await raw.send(Pong(1))
        await raw.send(Pong(10**9))
        await trio.sleep(0.1)
        assert link.rtt is None


# Back-pressure


async def test_a_slow_reader_makes_senders_wait_and_loses_nothing(autojump_clock):
    got, go = [], trio.Event()

    async def slow(inbound):
        await go.wait()
        got.append(inbound.message.step)

    sent = []

    async def send_all(link):
        for step in range(60):
            await link.send(StageStepMessage(S, 1, 0, step, 0, 1), bytes(10_000))
            sent.append(step)

    async with linked(drop, slow, streams=trio.testing.lockstep_stream_pair, settings=LinkSettings(outbox=100_000)) as (
        link,
        _,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, link)
            await trio.sleep(20)
            assert 9 <= len(sent) <= 40  # the outbox, a write in hand, and what the reader has taken but not delivered
            with pytest.raises(trio.WouldBlock):
                link.send_nowait(STEP, bytes(10_000))
            go.set()
        await trio.sleep(1)
    assert got == list(range(60))


@pytest.mark.parametrize("opened", [True, False])
async def test_a_peer_that_pings_but_takes_nothing_is_given_up(opened, autojump_clock):
    async with one_link(streams=trio.testing.lockstep_stream_pair, opened=opened) as (link, raw):

        async def keep_talking():
            for number in range(1000):
                await trio.sleep(1)
                await raw.send(Ping(number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_talking)
            await link.send(STEP, bytes(1_000_000))
            begun = trio.current_time()
            await link.closed.wait()
            assert "taken nothing" in str(link.ended_by)
            assert trio.current_time() - begun == pytest.approx(30, abs=5)
            nursery.cancel_scope.cancel()


async def test_a_long_message_over_a_slow_line_is_not_cut_short_by_heartbeats(autojump_clock):
    async with one_link(streams=trio.testing.lockstep_stream_pair) as (link, raw):
        await link.send(STEP, bytes(4 << 20))
        while not any(envelope.message == STEP for envelope in raw.messages):
            for _ in range(5):  # a piece every few seconds, and not one word from that side
                await trio.sleep(1)
            assert await raw.read()
        assert not link.closed.is_set()


async def test_a_message_above_the_bound_of_the_outbox_goes_out_alone(autojump_clock):
    got = []

    async def deliver(inbound):
        got.append(len(inbound.body))

    async with linked(drop, deliver, settings=LinkSettings(outbox=1000)) as (link, _):
        for size in (5, 5_000_000, 7):
            await link.send(STEP, bytes(size))
        await trio.sleep(1)
    assert got == [5, 5_000_000, 7]


# Cancellation


async def test_a_sender_that_is_cancelled_cuts_no_message(autojump_clock):
    got = []

    async def deliver(inbound):
        got.append((inbound.message.step, len(inbound.body)))
        await trio.sleep(0.01)

    async def send(link, step):
        with trio.move_on_after(0.003 * step):
            await link.send(StageStepMessage(S, 1, 0, step, 0, 1), bytes(1000 * step))

    settings = LinkSettings(outbox=50_000)
    async with linked(drop, deliver, streams=trio.testing.lockstep_stream_pair, settings=settings) as (link, other):
        async with trio.open_nursery() as nursery:
            for step in range(50):
                nursery.start_soon(send, link, step)
        await link.send(StageStepMessage(S, 1, 0, 99, 0, 1))
        await trio.sleep(5)
        assert not link.closed.is_set()
        assert not other.closed.is_set()
    assert got[-1] == (99, 0)
    assert 1 < len(got) < 51  # some gave up before there was room
    assert all(size == 1000 * step for step, size in got[:-1])
    assert len({step for step, _ in got}) == len(got)


async def test_a_message_whose_sender_gave_up_before_there_was_room_is_not_sent(autojump_clock):
    settings = LinkSettings(outbox=1000)
    async with one_link(streams=trio.testing.lockstep_stream_pair, settings=settings) as (link, raw):
        await link.send(STEP, bytes(1000))
        with trio.move_on_after(1) as scope:
            await link.send(CloseStage(S, 7))
        assert scope.cancelled_caught
        for _ in range(4):
            with trio.move_on_after(1):
                await raw.read()
        assert CloseStage(S, 7) not in [envelope.message for envelope in raw.messages]
        assert STEP in [envelope.message for envelope in raw.messages]


async def test_a_question_whose_asker_gave_up_leaves_nothing_behind(autojump_clock):
    async with linked(drop, wait_for_ever) as (link, _):
        for _ in range(3):
            with trio.move_on_after(1):
                await link.ask(Probe(), timeout=60)
        assert link.is_idle


async def test_cancelling_the_link_closes_its_stream(autojump_clock):
    stream, other = trio.testing.memory_stream_pair()
    link = make_link(stream)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run, drop)
        nursery.cancel_scope.cancel()
    assert link.closed.is_set()
    assert await RawEnd(other).read_to_the_end()  # returns: it has an end
    with pytest.raises(PeerUnreachable):
        await link.send(Probe())
    with pytest.raises(PeerUnreachable):
        link.send_nowait(Probe())


# What breaks the protocol


GARBAGE = {
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "oversized": struct.pack("<IBQI", 13 + (16 << 10) + 1, 1, 0, 10),
    "four gigabytes": struct.pack("<IBQI", 2**32 - 1, 6, 0, 10),
    "header longer than frame": struct.pack("<IBQI", 13, 1, 0, 10),
    "no message": struct.pack("<IBQI", 13 + 3, 1, 0, 3) + b"\xff\xff\xff",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
async def test_what_breaks_the_protocol_ends_the_link_and_is_told(data, autojump_clock):
    async with one_link() as (link, raw):
        await raw.stream.send_all(data)
        await link.closed.wait()
        assert isinstance(link.ended_by, PeerMisbehaved)
        farewell = (await raw.read_to_the_end())[-1]
        assert farewell.message.code == "peer_misbehaved"
        assert farewell.exchange == 0


async def test_an_oversized_frame_is_refused_before_any_of_it_is_read(autojump_clock):
    async with one_link() as (link, raw):
        await raw.stream.send_all(GARBAGE["oversized"])
        await link.closed.wait()
        assert "16385" in str(link.ended_by)


async def test_messages_before_the_one_that_breaks_the_protocol_count(autojump_clock):
    got = []

    async def deliver(inbound):
        got.append(inbound.message)

    async with one_link(deliver) as (link, raw):
        await raw.send(CloseStage(S, 1))
        await raw.stream.send_all(GARBAGE["garbage"])
        await link.closed.wait()
    assert got == [CloseStage(S, 1)]


async def test_a_second_hello_ends_the_link(autojump_clock):
    async with one_link() as (link, raw):
        await raw.send(Hello(1, 1, 7, bytes(32), "0.1.0", 0.0))
        await link.closed.wait()
        assert isinstance(link.ended_by, PeerMisbehaved)


UNKNOWN = struct.pack("<IBQI", 13 + 14, 9, 0, 14) + b"\x81\xa4type\xa7of 2030"


async def test_an_unknown_message_is_skipped_if_the_peer_is_newer(autojump_clock):
    newer = Terms(1, TERMS.features, True, "9.0", 0.0)
    async with one_link(terms=newer) as (link, raw):
        await raw.stream.send_all(UNKNOWN)
        await raw.send(Probe(), exchange=2)
        await trio.sleep(1)
        assert not link.closed.is_set()
        while ProbeReply() not in [envelope.message for envelope in raw.messages]:
            await raw.read()


async def test_an_unknown_message_of_a_peer_that_is_not_newer_ends_the_link(autojump_clock):
    async with one_link() as (link, raw):
        await raw.stream.send_all(UNKNOWN)
        await link.closed.wait()
        assert isinstance(link.ended_by, PeerMisbehaved)


async def test_a_feature_that_was_not_agreed_on_is_neither_sent_nor_taken(autojump_clock):
    delegate = EXAMPLES["stage/delegate"][1]
    without = Terms(1, Feature.DATA_PLANE, False, "0.1.0", 0.0)
    async with one_link(terms=without) as (link, raw):
        with pytest.raises(PeerRefused, match="DELEGATION"):
            await link.send(delegate)
        await raw.send(delegate)
        await link.closed.wait()
        assert isinstance(link.ended_by, PeerMisbehaved)


async def test_a_request_that_is_kept_among_peers_is_not_sent_to_who_would_not_keep_it_there(autojump_clock):
    older = Terms(1, Feature.DATA_PLANE | Feature.DELEGATION, False, "0.1.0", 0.0)
    async with one_link(terms=older) as (link, _raw):
        with pytest.raises(PeerRefused, match="NAMED_PEERS"):
            await link.send(EXAMPLES["stage/delegate_among"][1])
        await link.send(EXAMPLES["stage/delegate"][1])


async def test_what_the_receiver_finds_wrong_ends_the_link_too(autojump_clock):
    async def judge(inbound):
        raise PeerMisbehaved("not your session")

    async with linked(drop, judge) as (link, other):
        await link.send(CancelDelegation(S))
        await link.closed.wait()
        assert "not your session" in str(other.ended_by)
        assert "not your session" in str(link.ended_by)


# The end


async def test_the_other_side_hears_why_a_link_is_closed(autojump_clock):
    async with linked() as (link, other):
        other.close("this node is going to sleep")
        await link.closed.wait()
        assert "this node is going to sleep" in str(link.ended_by)
        with pytest.raises(PeerUnreachable, match="going to sleep"):
            await link.send(Probe())


async def test_a_peer_that_is_killed_in_the_middle_of_a_message_has_not_misbehaved(autojump_clock):
    async with one_link() as (link, raw):
        await raw.stream.send_all(struct.pack("<IBQI", 13 + 1000, 6, 0, 10) + b"half of it")
        await raw.stream.aclose()
        await link.closed.wait()
        assert isinstance(link.ended_by, PeerUnreachable)


async def test_a_link_that_was_closed_before_it_ran_ends_at_once(autojump_clock):
    stream, _ = trio.testing.memory_stream_pair()
    link = make_link(stream)
    link.close("never mind")
    with trio.fail_after(5):
        await link.run(drop)
    assert link.peer == PeerId("there")


async def test_idle_is_a_link_on_which_only_heartbeats_go(autojump_clock):
    async with linked() as (link, other):
        await link.ask(Probe(), timeout=1)
        used = link.used_at
        await trio.sleep(101)
        assert link.is_idle
        assert (link.used_at, other.used_at) == (used, used)


async def test_who_was_asked_need_not_ask_too(autojump_clock):
    """On an idle link one side pings; the other does so now and then, to know the distance, or when it hears nothing."""
    async with linked() as (here, there):
        sent = []
        for link in (here, there):
            encode = link._codec.encode
            link._codec.encode = lambda message, *rest, link=link, encode=encode: (
                sent.append((link, type(message))) or encode(message, *rest)
            )
        await trio.sleep(10 * 30.5)
        assert (here.missed, there.missed) == (0, 0)
        assert here.rtt is not None
        assert there.rtt is not None
    pings = [link for link, kind in sent if kind is Ping]
    assert pings.count(here) > 50
    assert pings.count(there) < 15


async def test_who_was_asked_until_now_notices_as_soon_that_nobody_asks_any_more(autojump_clock):
    async with one_link(opened=False) as (link, raw):
        for number in range(1, 20):
            await raw.send(Ping(number))
            await trio.sleep(5)
            assert link.missed == 0
        silent_since = trio.current_time() - 5
        await trio.sleep(4)
        assert link.missed == 1
        await link.closed.wait()
        assert 15 <= trio.current_time() - silent_since <= 20
