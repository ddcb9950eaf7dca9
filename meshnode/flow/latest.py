"""The newest value of something, and a way to wait for the next one. Slow readers skip to the newest."""

from typing import Generic, Self, TypeVar

import attrs
import trio

__all__ = ["Latest", "LatestValues"]

T = TypeVar("T")


@attrs.define(eq=False)
class Latest(Generic[T]):
    """One writer, any number of readers."""

    value: T
    version: int = attrs.field(default=0, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def set(self, value: T) -> None:
        """Replace the value and wake the readers; never waits."""
        self.value = value
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self, seen: int) -> int:
        """Wait until the version is above `seen` and return it. Cancellation changes nothing."""
        await trio.lowlevel.checkpoint()
        while self.version <= seen:
            await self._changed.wait()
        return self.version

    def values(self) -> "LatestValues[T]":
        """Iterate the present value and then every newest one there was time to see."""
        return LatestValues(self)


@attrs.define(eq=False)
class LatestValues(Generic[T]):
    """One reader's place in a Latest."""

    _latest: Latest[T]
    _seen: int = attrs.field(default=-1, init=False)

    def __aiter__(self) -> Self:
        """Iterate the values."""
        return self

    async def __anext__(self) -> T:
        """Wait for a value this reader has not seen and return the newest. Cancellation changes nothing."""
        self._seen = await self._latest.changed(self._seen)
        return self._latest.value
