"""What a link has to send: whole frames, in order, with a bound in bytes and waiting senders behind it."""

from collections import deque

import attrs
import trio

__all__ = ["Outbox"]

_BATCH = 256 << 10  # bytes that are joined for one write


@attrs.define(eq=False)
class _Sender:
    """One who waits for room."""

    data: bytes
    admitted: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class Outbox:
    """Frames on their way to one writer. A frame of any size is let in when there is nothing else."""

    bound: int  # bytes
    is_closed: bool = attrs.field(default=False, init=False)
    _frames: deque[bytes] = attrs.field(factory=deque, init=False)
    _urgent: dict[str, bytes] = attrs.field(factory=dict, init=False)  # by kind
    _senders: deque[_Sender] = attrs.field(factory=deque, init=False)
    _nbytes: int = attrs.field(default=0, init=False)  # of frames, those being written among them
    _taken: int = attrs.field(default=0, init=False)  # of these
    _filled: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._frames or self._urgent)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is waiting or being written."""
        return not (self._nbytes or self._urgent)

    def put_nowait(self, data: bytes) -> None:
        """Queue a frame. Raises trio.WouldBlock when there is no room, or others wait for it."""
        if self._senders or not self._fits(data):
            raise trio.WouldBlock
        self._append(data)

    async def put(self, data: bytes) -> None:
        """Wait for room and queue a frame. Cancellation queues all of it or nothing; `close` makes it return."""
        try:
            self.put_nowait(data)
        except trio.WouldBlock:
            sender = _Sender(data)
            self._senders.append(sender)
            try:
                await sender.admitted.wait()
            except trio.Cancelled:
                if not sender.admitted.is_set():
                    self._senders.remove(sender)
                raise
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()

    def put_first(self, kind: str, data: bytes) -> None:
        """Queue a small frame before all others. A newer one of its kind replaces it: there is one of each at most."""
        if not self.is_closed:
            self._urgent[kind] = data
            self._filled.set()

    async def filled(self) -> None:
        """Wait until there is something to write, or no more will come. Cancellation changes nothing."""
        while not self and not self.is_closed:
            self._filled = trio.Event()
            await self._filled.wait()

    def take(self) -> bytes:
        """Return the next frames as one piece of about 256 KiB, or of one frame if that is larger."""
        batch = list(self._urgent.values())
        self._urgent.clear()
        self._taken = 0
        while self._frames and (not self._taken or self._taken + len(self._frames[0]) <= _BATCH):
            frame = self._frames.popleft()
            self._taken += len(frame)
            batch.append(frame)
        return batch[0] if len(batch) == 1 else b"".join(batch)

    def wrote(self) -> None:
        """Make room: what was taken has been written."""
        self._nbytes -= self._taken
        self._taken = 0
        while self._senders and self._fits(self._senders[0].data):
            sender = self._senders.popleft()
            self._append(sender.data)
            sender.admitted.set()

    def close(self) -> None:
        """Let all who wait go; what they wanted to send is dropped, like what is queued."""
        self.is_closed = True
        self._filled.set()
        for sender in self._senders:
            sender.admitted.set()
        for content in (self._senders, self._frames, self._urgent):
            content.clear()

    def _fits(self, data: bytes) -> bool:
        return not self._nbytes or self._nbytes + len(data) <= self.bound

    def _append(self, data: bytes) -> None:
        self._frames.append(data)
        self._nbytes += len(data)
        self._filled.set()
