"""Streams of a network in memory: in order, late, held up while the way is cut, and ended when a process dies."""

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
    changed: trio.Event = attrs.field(factory=trio.Event)

    def tell(self):
        self.changed.set()
        self.changed = trio.Event()

    async def send(self, data):
        await trio.lowlevel.checkpoint()
        while self.bytes > _WINDOW and not self.broken:
            await self.changed.wait()
        if self.broken:
            raise trio.BrokenResourceError("the other side is gone")
        if self.lost:
            self.bytes += len(data)
            return
        self.last = max(self.last, trio.current_time() + self.world.latency(self.source, self.target))
        self.queue.append((self.last, bytes(data)))
        self.bytes += len(data)
        self.tell()

    async def receive(self):
        await trio.lowlevel.checkpoint()
        while True:
            if self.broken:
                raise trio.BrokenResourceError("the other side is gone")
            if self.queue and not self.lost and not self.world.is_cut(self.source, self.target):
                wait = self.queue[0][0] - trio.current_time()
                if wait <= 0:
                    _, data = self.queue.popleft()
                    self.bytes -= len(data)
                    self.tell()
                    return data
                with trio.move_on_after(wait):
                    await self.changed.wait()
            elif self.ended and not self.queue and not self.lost:
                return b""
            else:
                await self.changed.wait()


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
