"""Ends the generations that outlive the time to drain, with an error that their clients are told, before connections are cut."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import attrs
import trio

from meshnode.api.ports import Events, Generate
from meshnode.errors import Unavailable
from meshnode.types.generation import GenerationEvent, GenerationRequest

__all__ = ["Closing"]

_WHY = "this node is stopping; ask again in a moment, or another node"


@attrs.define(eq=False)
class Closing:
    """The generations of one server."""

    _generate: Generate
    _is_over: bool = attrs.field(default=False, init=False)
    _waits: set[trio.CancelScope] = attrs.field(factory=set, init=False)

    @asynccontextmanager
    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[Events]:
        """Run generations as the given function does, until `end`."""
        async with self._generate(requests) as events:
            yield _Until(self, events)

    def end(self) -> None:
        """Make whoever waits for an event, now or later, get Unavailable."""
        self._is_over = True
        for wait in self._waits:
            wait.cancel()

    async def next_of(self, events: Events) -> tuple[int, GenerationEvent]:
        """Return the next event. Raises Unavailable at the end, and what the events raise."""
        with trio.CancelScope() as wait:
            self._waits.add(wait)
            try:
                if not self._is_over:
                    return await anext(events)
            finally:
                self._waits.discard(wait)
        raise Unavailable(_WHY)


@attrs.frozen(eq=False)
class _Until:
    closing: Closing
    events: Events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, GenerationEvent]:
        return await self.closing.next_of(self.events)

    def waiting(self) -> list[tuple[int, GenerationEvent]]:
        return self.events.waiting()
