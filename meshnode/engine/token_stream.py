"""The tokens of one generation on their way from a worker to a reader, who may be slower."""

from collections import deque
from collections.abc import Callable
from typing import Self

import attrs
import trio

from meshnode.errors import MeshnodeError
from meshnode.types.generation import TokenEvent

__all__ = ["TokenStream"]

_GRANT = 16


@attrs.define(eq=False)
class TokenStream:
    """The tokens of one generation; iterating grants the worker more."""

    _grant: Callable[[int], None]
    _events: deque[TokenEvent] = attrs.field(factory=deque, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _accepted: bool = attrs.field(default=False, init=False)
    ended: bool = attrs.field(default=False, init=False)
    cached_tokens: int = attrs.field(default=0, init=False)  # see `TokenEvents`
    _error: MeshnodeError | None = attrs.field(default=None, init=False)
    _taken: int = attrs.field(default=0, init=False)

    def __aiter__(self) -> Self:
        """Iterate the tokens."""
        return self

    async def __anext__(self) -> TokenEvent:
        """Return the next token; raises WorkerLost, or what the worker refused with. Cancellation loses nothing."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
            await self._wait()
        self._taken += 1
        if self._taken % _GRANT == 0 and not self.ended:
            self._grant(_GRANT)
        return self._events.popleft()

    async def accepted(self) -> None:
        """Wait until the worker has reserved the session's memory. Raises what it refused with."""
        while not self._accepted and self._error is None:
            await self._wait()
        if not self._accepted and self._error is not None:
            raise self._error

    def accept(self) -> None:
        """Note that the memory is reserved."""
        self._accepted = True
        self._changed.set()

    def push(self, event: TokenEvent) -> None:
        """Take a token from the worker."""
        self._events.append(event)
        self._changed.set()

    def finish(self, error: MeshnodeError | None = None) -> None:
        """Note that no more come. An answer that is complete stays so, whatever happens to the worker afterwards."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._changed.set()

    async def _wait(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()
