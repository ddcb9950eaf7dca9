"""One end of a ring link: TLS that never waits, since the thread that has it computes for others too."""

import ssl
from collections.abc import Iterator

import attrs

from meshnode.errors import RingBroken
from meshnode.wire.envelopes import Envelope, EnvelopeCodec
from meshnode.wire.ring_messages import RING_MESSAGES, RingMessage

__all__ = ["RingSocket"]

_READ = 256 << 10  # bytes
_UNSENT = 4 << 20  # bytes that may wait here, a row of each of some hundred sessions: who takes nothing is gone


@attrs.define(eq=False)
class RingSocket:
    """Owned by one thread at a time. Its methods raise RingBroken once the other side is gone or takes nothing."""

    socket: ssl.SSLSocket
    codec: EnvelopeCodec[RingMessage] = attrs.field(factory=lambda: EnvelopeCodec(RING_MESSAGES, RING_MESSAGES))
    _unsent: bytearray = attrs.field(factory=bytearray, init=False)

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for room in the connection."""
        return bool(self._unsent)

    def send(self, message: RingMessage, body: bytes = b"") -> None:
        """Send a message as far as there is room; `flush` sends the rest."""
        self._unsent += self.codec.encode(message, body)
        self.flush()
        if len(self._unsent) > _UNSENT:
            raise RingBroken(f"the other worker has left {len(self._unsent)} bytes untaken")

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                raise RingBroken(f"the other worker is gone: {error}") from error
            del self._unsent[:sent]

    def receive(self) -> Iterator[Envelope[RingMessage]]:
        """Yield the messages that have come, at least once what a poller saw. Raises WireError too, where one is malformed."""
        is_more = True
        while is_more:
            try:
                data = self.socket.recv(_READ)
                is_more = bool(self.socket.pending())
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                raise RingBroken(f"the other worker is gone: {error}") from error
            if not data:
                raise RingBroken("the other worker is gone")
            yield from self.codec.feed(data)

    def close(self) -> None:
        """End the connection."""
        self.socket.close()
