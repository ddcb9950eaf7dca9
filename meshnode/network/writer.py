"""The one that writes to a link's stream, and so the only place where a frame could be cut."""

import attrs
import trio

from meshnode.errors import PeerUnreachable
from meshnode.network.outbox import Outbox
from meshnode.network.ports import ByteStream

__all__ = ["FrameWriter"]

_SLICE = 256 << 10  # bytes of one write; each one done is progress


@attrs.define(eq=False)
class FrameWriter:
    """Writes whole frames in order. Letting a sender write into an idle socket by itself was measured: it gains nothing."""

    stream: ByteStream
    outbox: Outbox
    is_cut: bool = attrs.field(default=False, init=False)  # a frame may have been sent in part; nothing can follow it
    slices: int = attrs.field(default=0, init=False)  # written so far of frames that take several
    _since: float | None = attrs.field(default=None, init=False)  # when the write that is going on began

    @property
    def waiting(self) -> float:
        """Seconds that the peer has not taken what is being written."""
        return 0.0 if self._since is None else trio.current_time() - self._since

    async def run(self) -> None:
        """Write what is queued, until the outbox is closed; what is in hand then is still written. Raises PeerUnreachable."""
        while True:
            if not self.outbox:
                await self.outbox.filled()
            if self.outbox.is_closed:
                return
            await self.write(self.outbox.take())
            self.outbox.wrote()

    async def write(self, data: bytes) -> None:
        """Write to the stream, when nobody else does. Raises PeerUnreachable; after a cancellation the stream is cut."""
        self.is_cut = True
        try:
            for start in range(0, len(data), _SLICE):
                self._since = trio.current_time()
                await self.stream.send_all(data[start : start + _SLICE] if len(data) > _SLICE else data)
                if len(data) > _SLICE:
                    self.slices += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerUnreachable("the peer has gone away") from error
        self._since = None
        self.is_cut = False
