"""POST /v1/chat/completions."""

from contextlib import AsyncExitStack

import trio
from quart import Response

from meshnode.api.openai.reply import ChatReply
from meshnode.api.openai.schemas import ChatRequest
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.streams import HEARTBEAT, event_lines, event_stream
from meshnode.types.generation import GenerationEvent
from meshnode.types.ids import RequestId

__all__ = ["complete_chat"]


async def complete_chat(
    body: ChatRequest, dependencies: ApiDependencies, resources: AsyncExitStack, *, client: str, request: RequestId
) -> Response:
    """Answer a chat request, whole or as a stream.

    Raises RequestError and InferenceError leafs before anything is sent. The generations of a streamed answer end with
    `resources`, which the caller closes when it has been sent or the client has left; all others end before this returns.
    """
    requests = body.generations(client, request)
    reply = ChatReply(
        request=request,
        choices_wanted=len(requests),
        wants_logprobs=bool(body.logprobs),
        include_usage=body.include_usage,
    )
    async with AsyncExitStack() as own:
        events = await own.enter_async_context(dependencies.generate(requests))
        if not body.stream:
            async for index, event in events:
                reply.take(index, event)
            return json_reply(reply.completion(), headers=reply.headers())
        # A refusal should still become a status, so the head waits for the first event; but not until a proxy gives up.
        first: tuple[int, GenerationEvent] | None = None
        with trio.move_on_after(dependencies.heartbeat):
            first = await anext(events)
        resources.push_async_exit(own.pop_all())
    opening = HEARTBEAT if first is None else reply.chunk_of(*first)
    lines = event_lines(events, reply.chunk_of, reply.end, opening=opening, heartbeat=dependencies.heartbeat)
    return event_stream(lines, reply.headers())
