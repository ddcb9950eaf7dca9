"""The API in a process of its own, before a router that has TOKENS tokens for every request as fast as they are taken.

Prints its port and serves until its input ends.
"""

import os
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.api import KEY, LIMITS, MODEL, FakeAdmin, FakeMesh

from meshnode.api.ports import ApiDependencies
from meshnode.api.responses.archive import open_archive
from meshnode.api.server import ApiServer
from meshnode.inference.calls import EVENT_BUFFER, EventStream
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.supervise.subsystem import Pulse
from meshnode.types.generation import Delta, Finished, FinishReason, Started, Usage

TOKENS = 10_000


async def say(send):
    """Hand on one answer, as the router does: through the channel of the call."""
    with send:
        await send.send((0, Started("tiny", 7, "local 0:2")))
        for number in range(TOKENS):
            await send.send((0, Delta(" token", tokens=(number,))))
        await send.send((0, Finished(FinishReason.LENGTH, Usage(7, TOKENS))))


@asynccontextmanager
async def generate(nursery, requests):
    send, receive = trio.open_memory_channel(EVENT_BUFFER)
    nursery.start_soon(say, send)
    with receive:
        yield EventStream(receive, len(requests))


async def main():
    """Serve."""
    async with trio.open_nursery() as nursery:
        dependencies = ApiDependencies(
            mesh=FakeMesh(),
            wishes=dict,
            key=KEY,
            generate=partial(generate, nursery),
            models=lambda: (MODEL,),
            admin=FakeAdmin(),
            status=dict,
            unready=tuple,
            request_shutdown=lambda: None,
            metrics=Metrics(),
            responses=await open_archive(MemoryStore()),
            requests_per_minute=1_000_000,
        )
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(ApiServer(dependencies, listeners, LIMITS, Pulse()).run)
        print(listeners[0].socket.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        os._exit(0)


if __name__ == "__main__":
    trio.run(main)
