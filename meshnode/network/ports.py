"""What links are made of and what they look like to those who use them."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import attrs
import msgspec
import trio

from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, ShardId

__all__ = ["ByteStream", "Inbound", "MessageLink", "PeerStream", "Shelf"]

M = TypeVar("M", bound=msgspec.Struct)


class ByteStream(Protocol):
    """Bytes in both directions, in order. Its methods raise trio.BrokenResourceError when the other side is gone."""

    async def send_all(self, data: bytes) -> None:
        """Send; waits while the other side does not read. The stream is of no use after a cancellation."""
        ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what has come, at least one byte, or nothing at the end."""
        ...

    async def aclose(self) -> None:
        """Close both directions."""
        ...


class PeerStream(ByteStream, Protocol):
    """A stream whose other end has been authenticated."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def is_relayed(self) -> bool:
        """Whether a third node carries it."""
        ...

    @property
    def is_lan(self) -> bool:
        """Whether it goes directly to this machine, or to one in a local network that we have an interface in."""
        ...


class MessageLink(Protocol[M]):
    """A long-lived, ordered stream of messages to and from one authenticated peer, shared by all who have to do with it."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def closed(self) -> trio.Event:
        """Set when the link has ended."""
        ...

    async def send(self, message: M, body: bytes = b"", exchange: int = 0) -> None:
        """Queue a message; waits while the peer does not read. Raises PeerUnreachable once closed.

        Cancellation queues all of it or nothing. `exchange` names the question that this answers.
        """
        ...

    def send_nowait(self, message: M, body: bytes = b"", exchange: int = 0) -> None:
        """Queue a message. Raises trio.WouldBlock when there is no room, and what `send` raises."""
        ...

    async def ask(self, message: M, body: bytes = b"", *, timeout: float) -> "Inbound[M]":
        """Send a question and wait up to `timeout` seconds for its answer.

        Raises what the peer failed with, and PeerUnreachable without an answer.
        """
        ...

    def close(self, why: str) -> None:
        """End the link, for all who have to do with it, at both ends; the peer is told why."""
        ...


@attrs.frozen(eq=False)
class Inbound(Generic[M]):
    """A message that has come in; `exchange` is what its answer has to be sent with, 0 if it wants none."""

    link: MessageLink[M]
    exchange: int
    message: M
    body: bytes = b""

    @property
    def peer(self) -> PeerId:
        """Who sent it, as the link has authenticated them."""
        return self.link.peer


class Shelf(Protocol):
    """What this node gives to others of the models it has."""

    def path(self, shard: ShardId) -> Path:
        """Return where a verified shard lies. Raises Unavailable for one that is not here."""
        ...

    def manifest(self, model: ModelId) -> bytes:
        """Return a manifest in msgpack. Raises Unavailable for one that is not here."""
        ...

    async def make_share(self, peer: PeerId, share: bytes, report: Callable[[int, int], None]) -> bytes:
        """Make a share of a model that a peer divides, and return what it hashes to, msgpack.

        Raises RequestError, Unavailable and Overloaded. Cancellation keeps what has been fetched.
        """
        ...

    async def keep_share(
        self, peer: PeerId, model: ModelId, blocks: BlockRange, block_count: int, report: Callable[[int, int], None]
    ) -> None:
        """Keep what was made as blocks of a model. Raises as `make_share`."""
        ...
