"""Waiting for one of several events."""

import trio

__all__ = ["first_of"]


async def first_of(*events: trio.Event) -> None:
    """Wait until one of them is set. Cancellation ends the wait."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)
