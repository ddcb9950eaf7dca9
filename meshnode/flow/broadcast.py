"""One-to-many: every subscriber gets every value, in the order of the calls to `publish`, which never waits.

A subscriber chooses how much it may fall behind and what happens then: the oldest values are dropped and counted, or it is
disconnected with `Lagged`. Slowness is the subscriber's, never the publisher's.
"""

import enum
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import attrs
import trio

from meshnode.errors import MeshnodeError

__all__ = ["Broadcast", "Lagged", "Overflow", "Subscription"]

T = TypeVar("T")


class Overflow(enum.Enum):
    """What happens to a subscriber that falls behind by more than its buffer."""

    DROP_OLDEST = "drop_oldest"
    DISCONNECT = "disconnect"


class Lagged(MeshnodeError):
    """The subscriber fell behind and chose to be disconnected."""

    code = "lagged"


@attrs.define(eq=False)
class Subscription(Generic[T]):
    """One subscriber's buffer; iterate it."""

    buffer: int = attrs.field(validator=attrs.validators.ge(1))  # without room, publish could not keep its promise
    overflow: Overflow
    dropped: int = attrs.field(default=0, init=False)
    _values: deque[T] = attrs.field(factory=deque, init=False)
    _lagged: bool = attrs.field(default=False, init=False)
    _ready: trio.Event = attrs.field(factory=trio.Event, init=False)

    def push(self, value: T) -> None:
        """Take a value from the publisher."""
        if self._lagged:
            return
        if len(self._values) >= self.buffer:
            if self.overflow is Overflow.DISCONNECT:
                self._lagged = True
                self._ready.set()
                return
            self._values.popleft()
            self.dropped += 1
        self._values.append(value)
        self._ready.set()

    def __aiter__(self) -> Self:
        """Iterate the values as they come."""
        return self

    async def __anext__(self) -> T:
        """Return the next value; raises Lagged after the last buffered one if disconnected. Cancellation loses nothing."""
        await trio.lowlevel.checkpoint()  # a reader that always finds something must not starve the others
        while not self._values:
            if self._lagged:
                raise Lagged(f"this subscriber fell more than {self.buffer} values behind; subscribe again")
            self._ready = trio.Event()
            await self._ready.wait()
        return self._values.popleft()


@attrs.define(eq=False)
class Broadcast(Generic[T]):
    """Values from one or more publishers to all present subscribers."""

    name: str
    _subscriptions: list[Subscription[T]] = attrs.field(factory=list, init=False)

    def publish(self, value: T) -> None:
        """Hand `value` to every subscriber; never waits."""
        for subscription in self._subscriptions:
            subscription.push(value)

    @contextmanager
    def subscribe(self, buffer: int, overflow: Overflow = Overflow.DROP_OLDEST) -> Iterator[Subscription[T]]:
        """Receive what is published from now on, until the context is left."""
        subscription: Subscription[T] = Subscription(buffer, overflow)
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
