"""Event streams on virtual time: what is joined, what fills a silence, what an end looks like."""

import attrs
import msgspec
import trio

from meshnode.api.streams import HEARTBEAT, event_lines
from meshnode.errors import SessionLost
from meshnode.types.generation import Delta


@attrs.define(eq=False)
class Channel:
    """Events as the router gives them: from a memory channel."""

    receive: trio.MemoryReceiveChannel
    joins: bool = True

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            item = await self.receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(item, Exception):
            raise item
        return item

    def waiting(self):
        found = []
        try:
            while self.joins:
                found.append(self.receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        return found


def text(word):
    return 0, Delta(word)


def lines(channel):
    return event_lines(channel, lambda _, event: event.text.encode(), lambda: b"END", opening=b"BEGIN", heartbeat=10.0)


async def test_everything_that_waits_goes_out_in_one_piece():
    send, receive = trio.open_memory_channel(32)
    for word in "abcde":
        send.send_nowait(text(word))
    send.close()
    assert [piece async for piece in lines(Channel(receive))] == [b"BEGIN", b"abcde", b"END"]


async def test_a_stream_that_keeps_up_sends_every_event_at_once(autojump_clock):
    send, receive = trio.open_memory_channel(32)
    came = []

    async def speak():
        with send:
            for word in "abc":
                await trio.sleep(1)
                await send.send(text(word))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        came = [(piece, trio.current_time()) async for piece in lines(Channel(receive))]
    start = came[0][1]
    assert [(piece, at - start) for piece, at in came] == [(b"BEGIN", 0), (b"a", 1), (b"b", 2), (b"c", 3), (b"END", 3)]


async def test_a_silence_is_filled_with_comments_and_loses_nothing(autojump_clock):
    send, receive = trio.open_memory_channel(0)

    async def speak():
        with send:
            for word, pause in (("a", 35), ("b", 5), ("c", 10), ("d", 12)):
                await trio.sleep(pause)
                await send.send(text(word))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        pieces = [piece async for piece in lines(Channel(receive))]
    assert pieces[:5] == [b"BEGIN", HEARTBEAT, HEARTBEAT, HEARTBEAT, b"a"]
    assert [piece for piece in pieces if piece != HEARTBEAT] == [b"BEGIN", b"a", b"b", b"c", b"d", b"END"]
    assert HEARTBEAT.startswith(b":"), "anything else would be an event"


async def test_a_failure_is_an_event_and_nothing_follows_it():
    send, receive = trio.open_memory_channel(32)
    for item in (text("a"), SessionLost("the worker is gone")):
        send.send_nowait(item)
    pieces = [piece async for piece in lines(Channel(receive, joins=False))]
    assert pieces[:2] == [b"BEGIN", b"a"]
    (failure,) = pieces[2:]
    assert msgspec.json.decode(failure.removeprefix(b"data: "))["error"]["code"] == "session_lost"


async def test_leaving_in_a_silence_is_prompt(autojump_clock):
    _send, receive = trio.open_memory_channel(0)
    with trio.move_on_after(25) as scope:
        async for _ in lines(Channel(receive)):
            pass
    assert scope.cancelled_caught
