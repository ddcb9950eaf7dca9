"""What the daemon hears of a ring comes in order, to the end, and only once."""

import pytest
import trio

from meshnode.engine.executor import RingSign, RingToken
from meshnode.engine.ring_events import RingEvents
from meshnode.engine.worker_connection import WorkerConnection
from meshnode.engine.worker_messages import Envelope, Lapped, RingEntered, Turning, from_worker_codec
from meshnode.errors import BadRows, RingBroken, WorkerLost
from meshnode.types.generation import TokenEvent
from meshnode.wire.failures import failure

HEARD = [RingSign.ENTERED, RingSign.TURNING, RingToken(3, 17, TokenEvent(5))]


def filled():
    events = RingEvents()
    for event in HEARD:
        events.push(event)
    return events


async def hear(events, heard):
    async for event in events:
        heard.append(event)


async def test_what_came_before_the_end_is_heard_before_it_and_nothing_after(autojump_clock):
    events = filled()
    events.end(RingBroken("the first end"))
    events.push(RingSign.TURNING)
    events.end(BadRows("a second one"))
    heard = []
    for _ in range(2):
        with pytest.raises(RingBroken, match="the first end"):
            await hear(events, heard)
    assert heard == HEARD


async def test_who_listens_waits_and_loses_nothing_by_being_cancelled(autojump_clock):
    events, heard = RingEvents(), []
    with trio.move_on_after(5) as waited:
        await anext(events)
    assert waited.cancelled_caught
    for event in HEARD:
        events.push(event)
        with trio.CancelScope() as scope:
            scope.cancel()
            heard.append(await anext(events))
    assert heard == []
    assert [await anext(events) for _ in HEARD] == HEARD


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda connection: connection.dispatch(Envelope(7, failure(BadRows("not finite")))), BadRows),
        (lambda connection: connection.dispatch(Envelope(7, failure(RingBroken("gone")))), RingBroken),
        (lambda connection: connection.fail_all(WorkerLost("the worker process ended")), WorkerLost),
    ],
)
async def test_the_worker_is_heard_by_the_ring_it_speaks_of(autojump_clock, end, error):
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        connection, codec = WorkerConnection(ours._sock), from_worker_codec()
        mine, other = connection.rings.setdefault(7, RingEvents()), connection.rings.setdefault(8, RingEvents())
        messages = [RingEntered(), Turning(), Lapped(3, 17, TokenEvent(5))]
        data = b"".join(codec.encode(Envelope(exchange, message)) for message in messages for exchange in (7, 9))
        for envelope in connection.codec.feed(data):
            connection.dispatch(envelope)
        assert connection.is_awaited
        end(connection)
        heard = []
        with pytest.raises(error):
            await hear(mine, heard)
        assert heard == HEARD
        other.push(RingSign.ENTERED)
        if error is WorkerLost:
            with pytest.raises(WorkerLost):
                await anext(other)
        else:
            assert await anext(other) is RingSign.ENTERED
