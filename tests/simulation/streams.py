"""Streams of a network in memory: in order, late, held up while the way is cut, and ended when a process dies."""

import math
from collections import deque

import attrs
import trio

__all__ = ["SimStream", "Way", "stream_pair"]

_WINDOW = 256 << 10  # bytes under way, after which a sender waits


@attrs.define(eq=False)
class Way:
    """From one process to another. Bytes that are late keep those behind them back, as in TCP."""

    world: object
    source: str
    target: str
    queue: deque = attrs.field(factory=deque)  # (when it arrives, bytes)
    bytes: int = 0
    last: float = 0.0
    ended: bool = False  # nothing more comes
    broken: bool = False
    lost: bool = False  # what is sent arrives nowhere, and nothing tells so
    room: trio.Event = attrs.field(factory=trio.Event)
    clock: object = attrs.field(factory=trio.lowlevel.current_clock)
    _receiver: object = None  # task that waits

    def tell(self):
        """Have both ends look again."""
        self.room.set()
        self.room = trio.Event()
        self._wake()

    async def send(self, data):
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.bytes > _WINDOW and not self.broken:
            await self.room.wait()
        if self.broken:
            raise trio.BrokenResourceError("the other side is gone")
        self.bytes += len(data)
        if self.lost:
            return
        self.last = max(self.last, _tick(self.clock.now + self.world.latency(self.source, self.target)))
        self.queue.append((self.last, bytes(data)))
        if self._receiver is not None and len(self.queue) == 1:
            self.clock.call_at(self.last, self._wake)

    async def receive(self):
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self.broken:
                raise trio.BrokenResourceError("the other side is gone")
            if self.queue and not self.lost and not self.world.is_cut(self.source, self.target):
                if self.queue[0][0] <= self.clock.now:
                    return self._take()
                self.clock.call_at(self.queue[0][0], self._wake)
            elif self.ended and not self.queue and not self.lost:
                return b""
            self._receiver = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._leave)

    def _wake(self):
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            trio.lowlevel.reschedule(receiver)

    def _leave(self, _):
        self._receiver = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _take(self):
        _, data = self.queue.popleft()
        if self.bytes > _WINDOW:
            self.room.set()
            self.room = trio.Event()
        self.bytes -= len(data)
        return data


def _tick(time):
    """Round up to a millisecond: what arrives together is taken in one turn of the loop, in an order that the seed decides."""
    return math.ceil(time * 1e3) / 1e3


@attrs.define(eq=False)
class SimStream:
    """One end of a stream."""

    peer: str
    out: Way
    into: Way
    is_relayed: bool = False
    is_lan: bool = True

    async def send_all(self, data):
        await self.out.send(data)

    async def receive_some(self, max_bytes=None):
        return await self.into.receive()

    async def aclose(self):
        if self.out.lost:  # nothing gets out
            await trio.lowlevel.checkpoint()
            return
        self.out.ended, self.into.broken = True, True
        self.out.tell()
        self.into.tell()
        await trio.lowlevel.checkpoint()

    def lose(self):
        """One of the ends is without power: the other one hears nothing more, and is not told."""
        self.out.lost = self.into.lost = True

    def sever(self):
        """The process at one of the ends is gone."""
        for way in (self.out, self.into):
            way.broken = True
            way.queue.clear()
            way.tell()


def stream_pair(world, source, target):
    """Return the ends of a stream that `source` opens to `target`."""
    there, back = Way(world, source, target), Way(world, target, source)
    world.ways += [there, back]
    return SimStream(target, there, back), SimStream(source, back, there)
