"""Named thread limiters, so that one kind of blocking work cannot starve another.

Hashing may use all cores but one, disk and templates two threads each, and the store one, which also orders its writes.
"""

import functools
import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import attrs
import trio

__all__ = ["Lanes"]

T = TypeVar("T")
Args = TypeVarTuple("Args")


def _limiters() -> dict[str, trio.CapacityLimiter]:
    cores = os.cpu_count() or 1
    sizes = {"hashing": max(1, cores - 1), "disk": 2, "store": 1, "template": 2}
    return {name: trio.CapacityLimiter(size) for name, size in sizes.items()}


@attrs.define(eq=False)
class Lanes:
    """The lanes of one node."""

    _limiters: dict[str, trio.CapacityLimiter] = attrs.field(factory=_limiters, init=False)

    async def run(self, lane: str, function: Callable[[*Args], T], *args: *Args, abandon_on_cancel: bool = False) -> T:
        """Run `function(*args)` in a thread of `lane` ("hashing", "disk", "store" or "template").

        Cancellation waits for the function to end, unless `abandon_on_cancel`: then its result is dropped.
        """
        limiter = self._limiters[lane]
        call = functools.partial(function, *args)
        return await trio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
