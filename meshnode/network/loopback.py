"""The stage link of a node to itself: no frames, no copies, the same behaviour as a link to another node."""

import itertools
from collections.abc import Callable

import attrs
import trio

from meshnode.errors import PeerUnreachable
from meshnode.flow.mailbox import Mailbox
from meshnode.network.stage_links import Received
from meshnode.types.ids import PeerId
from meshnode.wire.failures import Failed, error_from
from meshnode.wire.stage_messages import StageMessage

__all__ = ["LoopbackLink", "LoopbackLinks"]


@attrs.define(eq=False)
class _Asked:
    answered: trio.Event = attrs.field(factory=trio.Event)
    reply: Received | None = None


@attrs.define(eq=False)
class LoopbackLink:
    """Delivers into the mailbox that the messages of peers come through; an answer goes to whoever asked."""

    peer: PeerId
    _mailbox: Mailbox[Received, None]
    closed: trio.Event = attrs.field(factory=trio.Event, init=False)  # never set: we do not lose ourselves
    _asked: dict[int, _Asked] = attrs.field(factory=dict, init=False)
    _next_exchange: Callable[[], int] = attrs.field(factory=lambda: itertools.count(1).__next__, init=False)

    async def send(self, message: StageMessage, body: bytes = b"", exchange: int = 0) -> None:
        """Deliver a message; waits while the mailbox is full. Cancellation delivers all of it or nothing."""
        received = Received(self, exchange, message, body)
        if not self._is_answer(received):
            await self._mailbox.tell(received)

    def send_nowait(self, message: StageMessage, body: bytes = b"", exchange: int = 0) -> None:
        """Deliver a message. Raises trio.WouldBlock while the mailbox is full."""
        received = Received(self, exchange, message, body)
        if not self._is_answer(received):
            self._mailbox.tell_nowait(received)

    def _is_answer(self, received: Received) -> bool:
        asked = self._asked.get(received.exchange)
        if asked is None:
            return False
        asked.reply = received
        asked.answered.set()
        return True

    async def ask(self, message: StageMessage, body: bytes = b"", *, timeout: float) -> Received:
        """Deliver a question and wait for its answer. Raises what it failed with, PeerUnreachable after `timeout` seconds."""
        exchange, asked = self._next_exchange(), _Asked()
        self._asked[exchange] = asked
        try:
            with trio.move_on_after(timeout):
                await self._mailbox.tell(Received(self, exchange, message, body))
                await asked.answered.wait()
        finally:
            del self._asked[exchange]
        if asked.reply is None:
            raise PeerUnreachable(f"this node did not answer itself within {timeout:.1f} s")
        if isinstance(asked.reply.message, Failed):
            raise error_from(asked.reply.message)
        return asked.reply

    def close(self, why: str) -> None:
        """Do nothing: whoever would be told is who tells."""


@attrs.frozen(eq=False)
class LoopbackLinks:
    """The links of a node without a network."""

    link: LoopbackLink

    async def to(self, peer: PeerId) -> LoopbackLink:
        """Return the link to ourselves. Raises PeerUnreachable for anybody else."""
        await trio.lowlevel.checkpoint()
        if peer != self.link.peer:
            raise PeerUnreachable(f"{peer} cannot be reached: this node has no network")
        return self.link

    def existing(self, peer: PeerId) -> LoopbackLink | None:
        """Return the link to ourselves."""
        return self.link if peer == self.link.peer else None

    def ring_place(self) -> None:
        """Return None: nobody else would come."""

    def activations_pass(self) -> None:
        """Do nothing: there is no bulk that could give way."""
