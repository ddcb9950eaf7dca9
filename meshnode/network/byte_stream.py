"""What everything above the libp2p host sees of a connection to a peer."""

from typing import Protocol

from meshnode.types.ids import PeerId

__all__ = ["ByteStream"]


class ByteStream(Protocol):
    """An ordered byte stream to one authenticated peer, encrypted end to end."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by their key."""
        ...

    @property
    def is_relayed(self) -> bool:
        """Whether the bytes pass through a third node, which cannot read them."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send bytes; waits while the peer does not read. One caller at a time. Raises PeerUnreachable.

        Cancellation leaves the connection and its other streams alive, but part of `data` may have been sent.
        """
        ...

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return between 1 and `max_bytes` bytes, and b"" once the peer has closed. Raises PeerUnreachable.

        The end is not proof that all has come: a peer that was killed looks the same. Cancellation loses nothing.
        """
        ...

    async def aclose(self) -> None:
        """Close both directions; the peer reads what was sent before, and then the end. Never raises, may be repeated."""
        ...
