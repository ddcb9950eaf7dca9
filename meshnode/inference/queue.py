"""Admission: a bounded number of generations at once, the others wait their turn, client by client."""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from meshnode.errors import Overloaded

__all__ = ["FairQueue"]


@attrs.define(eq=False)
class FairQueue:
    """Waits instead of refusing, up to `max_waiting`; among clients turns go round, so one cannot starve the others."""

    max_active: int
    max_waiting: int
    active: int = attrs.field(default=0, init=False)
    _waiting: OrderedDict[str, deque[trio.Event]] = attrs.field(factory=OrderedDict, init=False)

    @property
    def waiting(self) -> int:
        """Generations that wait for their turn."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Hold one of the turns. Cancellation while waiting leaves the line. Raises Overloaded when the line is full."""
        if self.active < self.max_active and not self._waiting:
            self.active += 1
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        if self.waiting >= self.max_waiting:
            raise Overloaded(f"{self.waiting} requests are waiting already; try again later", retry_after=5.0)
        turn = trio.Event()
        line = self._waiting.setdefault(client, deque())
        line.append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self._pass_on()
            else:
                line.remove(turn)
                if not line:
                    self._waiting.pop(client, None)
            raise

    def _pass_on(self) -> None:
        """Give this turn to the client that has waited longest since its last one."""
        if not self._waiting:
            self.active -= 1
            return
        client, line = self._waiting.popitem(last=False)
        line.popleft().set()
        if line:
            self._waiting[client] = line  # to the end of the round
