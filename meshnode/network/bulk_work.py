"""Long work that a peer has asked for over a bulk connection: it hears of it every few seconds, and ends it by leaving."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from meshnode.errors import MeshnodeError
from meshnode.wire.bulk_messages import BulkMessage, ShareProgress

__all__ = ["Answers", "work_and_tell"]

T = TypeVar("T")
_EVERY = 3.0  # seconds; the other side gives up after some without a byte


class Answers(Protocol):
    """The connection; sending blocks."""

    def send(self, message: BulkMessage) -> None:
        """Send a message. Raises PeerUnreachable."""
        ...


async def work_and_tell(connection: Answers, work: Callable[[Callable[[int, int], None]], Awaitable[T]]) -> T:
    """Await `work`, which is given what it reports its progress with, in bytes done and in all.

    Raises the MeshnodeError leafs of the work, and PeerUnreachable when the peer has gone; the work is cancelled then.
    """
    told, outcome = (0, 0), list[T]()
    failed: MeshnodeError | None = None

    def report(done: int, total: int) -> None:
        nonlocal told
        told = (done, total)

    async def tell() -> None:
        nonlocal failed
        while True:
            await trio.sleep(_EVERY)
            try:
                await trio.to_thread.run_sync(connection.send, ShareProgress(*told))
            except MeshnodeError as error:
                failed = error
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        try:
            outcome.append(await work(report))
        except MeshnodeError as error:
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return outcome[0]
