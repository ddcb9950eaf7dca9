"""What the daemon hears of one session's ring, in order."""

import math

import attrs
import trio

from meshnode.engine.executor import RingEvent
from meshnode.errors import MeshnodeError

__all__ = ["RingEvents"]


@attrs.define(eq=False)
class RingEvents:
    """An async iterator that ends with an error. Unread may lie at most an event for each position that the session reserved."""

    _send: trio.MemorySendChannel[RingEvent] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[RingEvent] = attrs.field(init=False)
    _error: MeshnodeError | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[RingEvent](math.inf)

    def push(self, event: RingEvent) -> None:
        """Add an event, unless the end has come."""
        if self._error is None:
            self._send.send_nowait(event)

    def end(self, error: MeshnodeError) -> None:
        """Raise `error` after what has come; the first end counts."""
        if self._error is None:
            self._error = error
            self._send.close()

    def __aiter__(self) -> "RingEvents":
        """Iterate."""
        return self

    async def __anext__(self) -> RingEvent:
        """Return the next event. Raises what the ring ended with. Cancellation loses none."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            assert self._error is not None
            raise self._error from None
