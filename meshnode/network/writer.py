"""The one that writes to a link's stream, and so the only place where a frame could be cut."""

from collections.abc import Callable

import attrs
import trio

from meshnode.errors import PeerUnreachable
from meshnode.network.outbox import Outbox
from meshnode.network.ports import ByteStream

__all__ = ["FrameWriter"]

_SLICE = 256 << 10  # bytes of one write; each one done is progress
_SMALL = 8 << 10  # bytes of a frame that fits the socket if it has room at all


def _free() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@attrs.define(eq=False)
class FrameWriter:
    """Writes whole frames in order, from its own task.

    A small frame that finds nothing before it and room in the socket is written by its sender instead: waking the task
    would cost a round of the loop.
    """

    stream: ByteStream
    outbox: Outbox
    stall: float  # seconds in which the peer must take 256 KiB
    has_room: Callable[[], bool] | None  # whether 8 KiB can be written without waiting; None: cannot be known
    is_cut: bool = attrs.field(default=False, init=False)  # a frame may have been sent in part; nothing can follow it
    slices: int = attrs.field(default=0, init=False)  # written of frames that take several
    _free: trio.Event = attrs.field(factory=_free, init=False)  # nobody is writing

    async def put(self, data: bytes) -> None:
        """Send a frame or queue it; waits for room in the outbox. Cancellation sends all of it or nothing.

        Raises PeerUnreachable.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if len(data) <= _SMALL and self.outbox.is_idle and self._free.is_set() and self.has_room and self.has_room():
            with trio.CancelScope(shield=True):  # for as long as the kernel takes to copy it: there is room
                await self.write(data)
        else:
            await self.outbox.put(data)

    async def write(self, data: bytes) -> None:
        """Write to the stream, when nobody else does. Raises PeerUnreachable; after a cancellation the stream is cut."""
        self._free = trio.Event()
        self.is_cut = True
        try:
            if len(data) <= _SLICE:
                await self._write_slice(data)
            else:
                for start in range(0, len(data), _SLICE):
                    await self._write_slice(data[start : start + _SLICE])
                    self.slices += 1
            self.is_cut = False
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerUnreachable("the peer has gone away") from error
        finally:
            self._free.set()

    async def run(self) -> None:
        """Write what is queued, until cancelled. Raises PeerUnreachable."""
        while True:
            await self.outbox.filled()
            while not self._free.is_set():
                await self._free.wait()
            await self.write(self.outbox.take())
            self.outbox.wrote()

    async def _write_slice(self, data: bytes) -> None:
        with trio.move_on_after(self.stall) as scope:
            await self.stream.send_all(data)
        if scope.cancelled_caught:
            raise PeerUnreachable(f"the peer has taken nothing for {self.stall:.0f} s")
