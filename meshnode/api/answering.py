"""Runs generations and gives their reply, whole or as a stream: the same for every surface."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import trio
from quart import Response

from meshnode.api.left_out import warning_headers
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.streams import StreamForm, event_lines, event_stream
from meshnode.types.generation import GenerationEvent, GenerationRequest

__all__ = ["Reply", "reply_to"]


class Reply(Protocol):
    """A reply in the making, in a surface's own shape: one event after the other, and then the whole or the end."""

    @property
    def form(self) -> StreamForm:
        """How it is streamed."""
        ...

    def take(self, index: int, event: GenerationEvent) -> None:
        """Add an event to the whole reply."""
        ...

    def chunk_of(self, index: int, event: GenerationEvent) -> bytes:
        """Return an event as part of a stream."""
        ...

    def end(self) -> bytes:
        """Return what follows the last event of a stream."""
        ...

    def completion(self) -> dict[str, object]:
        """Return the whole reply."""
        ...

    def headers(self) -> dict[str, str]:
        """Return the headers, as far as they are known."""
        ...


async def reply_to(
    requests: Sequence[GenerationRequest],
    reply: Reply,
    dependencies: ApiDependencies,
    resources: AsyncExitStack,
    *,
    stream: bool,
    warnings: Sequence[str] = (),
) -> Response:
    """Run the generations and return their reply, whose head says `warnings`.

    Raises RequestError and InferenceError leafs before anything is sent. The generations of a streamed answer end with
    `resources`, which the caller closes when it has been sent or the client has left; all others end before this returns.
    """
    said = warning_headers(warnings)
    async with AsyncExitStack() as own:
        events = await own.enter_async_context(dependencies.generate(requests))
        if not stream:
            async for index, event in events:
                reply.take(index, event)
            return json_reply(reply.completion(), headers=reply.headers() | said)
        # A refusal should still become a status, so the head waits for the first event; but not until a proxy gives up.
        first: tuple[int, GenerationEvent] | None = None
        with trio.move_on_after(dependencies.heartbeat):
            first = await anext(events)
        resources.push_async_exit(own.pop_all())
    form, silence = reply.form, dependencies.heartbeat
    opening = form.heartbeat if first is None else reply.chunk_of(*first)
    lines = event_lines(events, reply.chunk_of, reply.end, opening=opening, heartbeat=silence, form=form)
    return event_stream(lines, reply.headers() | said, form)
