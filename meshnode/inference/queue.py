"""Admission: a bounded number of generations at once, the others wait their turn, client by client."""

import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial

import attrs
import structlog
import trio

from meshnode.errors import Overloaded

__all__ = ["FairQueue"]

_log = structlog.get_logger(__name__)
_IDLE_PATIENCE = 2.0  # seconds a turn may lie idle while another generation waits for one

_Idle = Callable[[str], AbstractContextManager[None]]
"""To be held, with the id of the request, while a turn lies idle."""


@attrs.define(eq=False)
class _Turn:
    """A turn that somebody holds."""

    since: float = 0.0  # when it began to lie idle
    idle: trio.CancelScope = attrs.field(factory=trio.CancelScope)  # of what waits for its reader


@attrs.define(eq=False)
class FairQueue:
    """Waits instead of refusing, up to `max_waiting`; among clients turns go round, so one cannot starve the others.

    Nor can one that does not read: of turns that lie idle as many end as others wait for, those that have lain longest.
    """

    max_active: int
    max_waiting: int
    active: int = attrs.field(default=0, init=False)
    _waiting: OrderedDict[str, deque[trio.Event]] = attrs.field(factory=OrderedDict, init=False)
    _idle: dict[_Turn, None] = attrs.field(factory=dict, init=False)  # the longest first

    @property
    def waiting(self) -> int:
        """Generations that wait for their turn."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[_Idle]:
        """Hold one of the turns; yields what to hold as well while it lies idle, for its reader takes nothing.

        Cancellation while waiting leaves the line. Raises Overloaded when the line is full, and out of what it yields when the
        turn has lain idle for too long and others wait; while nobody does it may lie.
        """
        if self.active < self.max_active and not self._waiting:
            self.active += 1
        else:
            await self._wait(client)
        turn = _Turn()
        try:
            yield partial(self._lie, turn)
        finally:
            self._idle.pop(turn, None)
            self._pass_on()

    @contextmanager
    def _lie(self, turn: _Turn, request: str) -> Iterator[None]:
        turn.since, turn.idle = trio.current_time(), trio.CancelScope()
        self._idle[turn] = None
        self._watch_idle()
        with turn.idle:
            yield
        if turn.idle.cancelled_caught:  # it stays among the idle until it is passed on: no other ends in its place
            seconds = round(trio.current_time() - turn.since, 1)
            _log.warning("turn ended, its reader takes nothing", id=request, seconds=seconds, waiting=self.waiting)
            raise Overloaded(f"nobody read this answer for {seconds} s, and others waited for its turn; ask again")
        del self._idle[turn]
        self._watch_idle()

    def _watch_idle(self) -> None:
        """Set when idle turns end; to be called whenever one begins or ceases to be idle, and when the line changes."""
        for place, turn in enumerate(self._idle):
            turn.idle.deadline = turn.since + _IDLE_PATIENCE if place < self.waiting else math.inf

    async def _wait(self, client: str) -> None:
        if self.waiting >= self.max_waiting:
            raise Overloaded(f"{self.waiting} requests are waiting already; try again later", retry_after=5.0)
        turn = trio.Event()
        line = self._waiting.setdefault(client, deque())
        line.append(turn)
        self._watch_idle()
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self._pass_on()
            else:
                line.remove(turn)
                if not line:
                    self._waiting.pop(client, None)
                self._watch_idle()
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
        self._watch_idle()
