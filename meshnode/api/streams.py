"""Streams that keep up: everything that waits goes out in one write.

hypercorn writes some 16,000 chunks a second on one core, so a stream that is behind must not pay per token.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable

import attrs
import msgspec
import trio
from quart import Response

from meshnode.api.failures import Failure, failure_body, failure_of
from meshnode.api.ports import Events
from meshnode.errors import MeshnodeError
from meshnode.types.generation import GenerationEvent

__all__ = ["DONE", "EVENTS", "HEARTBEAT", "StreamForm", "event_lines", "event_stream", "sse"]

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": waiting\n\n"
"""A comment, which every client of server-sent events skips, so that no proxy takes a long queue or prompt for a dead line."""


@attrs.frozen
class StreamForm:
    """How a surface streams, beside its events."""

    content_type: str
    heartbeat: bytes  # what its clients skip
    failure: Callable[[Failure], bytes]  # the last of a stream that cannot go on


def _error_event(failure: Failure) -> bytes:
    return b"data: " + failure_body(failure) + b"\n\n"


EVENTS = StreamForm("text/event-stream; charset=utf-8", HEARTBEAT, _error_event)
"""OpenAI's."""


def sse(value: object) -> bytes:
    """Encode one value as an event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def event_lines(
    events: Events,
    encode: Callable[[int, GenerationEvent], bytes],
    last: Callable[[], bytes],
    *,
    opening: bytes,
    heartbeat: float,
    form: StreamForm = EVENTS,
) -> AsyncGenerator[bytes, None]:
    """Yield the body: `opening`, `encode` of each event, several joined when several wait, and `last` at a good end.

    When nothing comes for `heartbeat` seconds, the form's heartbeat does. A failure after the head has been sent becomes
    what the form makes of it, and nothing that looks like a natural end follows.
    """
    yield opening
    try:
        while True:
            with trio.move_on_after(heartbeat) as silence:  # giving up the wait loses no event
                index, event = await anext(events)
            if silence.cancelled_caught:
                yield form.heartbeat
            else:
                lines = [encode(index, event), *(encode(other, more) for other, more in events.waiting())]
                yield b"".join(lines)
    except StopAsyncIteration:
        yield last()
    except MeshnodeError as error:
        yield form.failure(failure_of(error))


def event_stream(body: AsyncIterator[bytes], headers: dict[str, str], form: StreamForm = EVENTS) -> Response:
    """Wrap a body as a response without quart's response timeout, which would end a long answer as if it were complete."""
    response = Response(body, content_type=form.content_type, headers=headers)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.timeout = None
    return response
