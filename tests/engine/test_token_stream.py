"""The tokens of one generation on their way from the reader of the socket to the reader of the answer."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from meshnode.engine.token_stream import TokenStream
from meshnode.errors import OutOfMemory, WorkerLost
from meshnode.types.generation import TokenEvent


async def read(stream):
    return [event.token async for event in stream]


async def test_tokens_come_in_order_and_end(autojump_clock):
    stream, got = TokenStream(lambda count: None), []

    async def reader():
        got.extend(await read(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        for token in (3, 1, 2):
            await wait_all_tasks_blocked()
            stream.push(TokenEvent(token))
        stream.finish()
    assert got == [3, 1, 2]


async def test_what_was_said_before_the_loss_is_read_before_it_is_raised():
    stream = TokenStream(lambda count: None)
    stream.push(TokenEvent(1))
    stream.finish(WorkerLost("gone"))
    assert (await anext(stream)).token == 1
    with pytest.raises(WorkerLost):
        await anext(stream)


async def test_a_complete_answer_stays_complete_when_the_worker_is_lost_before_it_is_read():
    """It was taken for a broken one once, and resumed: text after the natural end, or a refusal to sample 0 tokens."""
    stream = TokenStream(lambda count: None)
    stream.push(TokenEvent(1))
    stream.finish()
    stream.finish(WorkerLost("gone"))
    assert await read(stream) == [1]


async def test_reading_grants_more_and_not_reading_does_not():
    grants = []
    stream = TokenStream(grants.append)
    for token in range(64):
        stream.push(TokenEvent(token))
    assert grants == []
    for _ in range(40):
        await anext(stream)
    assert sum(grants) == 32


async def test_a_refusal_is_raised_to_whoever_waits_for_acceptance():
    stream = TokenStream(lambda count: None)
    stream.finish(OutOfMemory("too much"))
    with pytest.raises(OutOfMemory):
        await stream.accepted()
