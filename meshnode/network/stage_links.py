"""What a stage link is, whatever carries it: a TLS connection, a relayed stream, or a loop to ourselves."""

from typing import Protocol

import attrs
import trio

from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import ControlMessage
from meshnode.wire.stage_messages import StageMessage

__all__ = ["Received", "StageLink", "StageLinks"]


class StageLink(Protocol):
    """A long-lived, ordered message stream to one authenticated peer, shared by all sessions."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def closed(self) -> trio.Event:
        """Set when the link has ended."""
        ...

    async def send(self, message: StageMessage, body: bytes = b"", exchange: int = 0) -> None:
        """Queue a message; waits while the peer does not read. Raises PeerUnreachable once closed.

        Cancellation queues all of it or nothing. `exchange` names the question that this answers.
        """
        ...

    async def ask(self, message: StageMessage, body: bytes = b"", *, timeout: float) -> "Received":
        """Send a question and wait up to `timeout` seconds for its answer.

        Raises what the peer failed with, and PeerUnreachable without an answer.
        """
        ...


@attrs.frozen(eq=False)
class Received:
    """A message that has come in, from another node or from ourselves."""

    link: StageLink
    exchange: int
    message: StageMessage | ControlMessage
    body: bytes = b""


class StageLinks(Protocol):
    """How to reach peers with stage messages."""

    async def to(self, peer: PeerId) -> StageLink:
        """Return the live link to a peer, opening one if there is none. Raises PeerUnreachable."""
        ...

    def existing(self, peer: PeerId) -> StageLink | None:
        """Return the live link to a peer, if there is one."""
        ...
