"""How others have generations run: a call through the router's mailbox, events through a channel of the caller's own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import attrs
import trio

from meshnode.errors import MeshnodeError, Unavailable
from meshnode.flow.mailbox import Mailbox
from meshnode.types.generation import Finished, GenerationEvent, GenerationRequest

__all__ = ["EVENT_BUFFER", "EventStream", "GenerationCall", "open_generations"]

EVENT_BUFFER = 32
"""Events a caller may lag behind; then its generation waits, and only its generation."""

_Item = tuple[int, GenerationEvent | MeshnodeError]


@attrs.frozen(eq=False)
class GenerationCall:
    """One generation to run. The router sends its events with `index`, an error last if it fails, and closes the channel."""

    request: GenerationRequest
    index: int
    events: trio.MemorySendChannel[_Item]
    abandoned: trio.Event  # the caller has left: stop at once


@attrs.define(eq=False)
class EventStream:
    """The events of one or more generations, in the order they happen."""

    _receive: trio.MemoryReceiveChannel[_Item]
    _unfinished: int
    _failure: MeshnodeError | None = None

    def __aiter__(self) -> Self:
        """Iterate the events."""
        return self

    async def __anext__(self) -> tuple[int, GenerationEvent]:
        """Return the next event. Raises the MeshnodeError that ended a generation, Unavailable if the router went away."""
        if self._failure is not None:
            raise self._failure
        if not self._unfinished:
            raise StopAsyncIteration
        try:
            return self._accept(await self._receive.receive())
        except trio.EndOfChannel:
            raise Unavailable("the node stopped working on this request; try again") from None

    def waiting(self) -> list[tuple[int, GenerationEvent]]:
        """Return what has arrived already; an error among it is raised by the next iteration."""
        found: list[tuple[int, GenerationEvent]] = []
        while self._unfinished and self._failure is None:
            try:
                found.append(self._accept(self._receive.receive_nowait()))
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            except MeshnodeError as error:
                self._failure = error
        return found

    def _accept(self, item: _Item) -> tuple[int, GenerationEvent]:
        index, event = item
        if isinstance(event, MeshnodeError):
            raise event
        if isinstance(event, Finished):
            self._unfinished -= 1
        return index, event


@asynccontextmanager
async def open_generations(
    mailbox: Mailbox[GenerationCall, None], requests: Sequence[GenerationRequest]
) -> AsyncIterator[EventStream]:
    """Run generations side by side and yield the stream of their events.

    Leaving the context, by cancellation too, ends whatever still runs. Holds no cancel scope, so it may be entered in one
    function and left in another of the same task. Raises Unavailable when the router does not take the calls within 5 s.
    """
    send, receive = trio.open_memory_channel[_Item](EVENT_BUFFER)
    abandoned = trio.Event()
    try:
        for index, request in enumerate(requests):
            call = GenerationCall(request, index, send.clone(), abandoned)
            with trio.move_on_after(5) as waited:
                await mailbox.tell(call)
            if waited.cancelled_caught:
                raise Unavailable("the router is restarting; try again")
        send.close()
        yield EventStream(receive, len(requests))
    finally:
        abandoned.set()
        receive.close()
        send.close()
