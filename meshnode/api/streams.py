"""Server-sent events that keep up: everything that waits goes out in one write.

hypercorn writes some 16,000 chunks a second on one core, so a stream that is behind must not pay per token.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec
from quart import Response

from meshnode.api.failures import failure_body, failure_of
from meshnode.api.ports import Events
from meshnode.errors import MeshnodeError
from meshnode.types.generation import GenerationEvent

__all__ = ["DONE", "event_lines", "event_stream", "sse"]

DONE = b"data: [DONE]\n\n"


def sse(value: object) -> bytes:
    """Encode one value as an event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def event_lines(
    events: Events, encode: Callable[[int, GenerationEvent], bytes], last: Callable[[], bytes]
) -> AsyncGenerator[bytes, None]:
    """Yield the body: `encode` of each event, several joined when several wait, and `last` at a good end.

    A failure after the head has been sent becomes an error event, and nothing that looks like a natural end follows it.
    """
    try:
        async for index, event in events:
            body = encode(index, event)
            for other, more in events.waiting():
                body += encode(other, more)
            if body:
                yield body
    except MeshnodeError as error:
        yield b"data: " + failure_body(failure_of(error)) + b"\n\n"
        return
    yield last()


def event_stream(body: AsyncIterator[bytes], headers: dict[str, str]) -> Response:
    """Wrap a body as a response without quart's response timeout, which would end a long answer as if it were complete."""
    response = Response(body, content_type="text/event-stream; charset=utf-8", headers=headers)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.timeout = None
    return response
