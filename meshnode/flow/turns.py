"""Work that must not be done twice at once: whoever names the same thing waits for its turn."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

__all__ = ["Turns"]


@attrs.define(eq=False)
class Turns:
    """One lock for each name that somebody uses."""

    _locks: dict[str, trio.Lock] = attrs.field(factory=dict, init=False)

    @asynccontextmanager
    async def of(self, *names: str) -> AsyncIterator[None]:
        """Wait until nobody else works on any of these names."""
        async with AsyncExitStack() as stack:
            for name in sorted(set(names)):  # always in one order, so that two who want two never wait for each other
                lock = self._locks.setdefault(name, trio.Lock())
                stack.callback(self._forget, name)
                await stack.enter_async_context(lock)
            yield

    def is_free(self, *names: str) -> bool:
        """Whether nobody works on any of these names, so that `of` would not wait."""
        return not any(name in self._locks and self._locks[name].locked() for name in names)

    def _forget(self, name: str) -> None:
        lock = self._locks.get(name)
        if lock is not None and not lock.locked():
            del self._locks[name]
