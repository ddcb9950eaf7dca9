"""What control messages lead to: records into the book, introductions into the table, tickets out."""

from collections.abc import Callable

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerRefused, PeerUnreachable
from meshnode.flow.mailbox import Mailbox
from meshnode.network.control_links import ControlLinks
from meshnode.network.gossip import GossipBook, StaleRecord
from meshnode.network.host_ports import StagePlane
from meshnode.network.peers import PeerTable
from meshnode.network.stage_links import ControlReceived
from meshnode.observe.metrics import Metrics
from meshnode.types.blocks import BlockRange
from meshnode.types.evidence import Evidence, Misdeed
from meshnode.types.ids import ModelId, PeerId, short
from meshnode.wire.control_messages import (
    ControlMessage,
    Introduction,
    Introductions,
    IntroductionsWanted,
    Kept,
    KeptWanted,
    Records,
    SignedRecord,
    TicketRequest,
)
from meshnode.wire.failures import failure

__all__ = ["ControlInbox"]

_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class ControlInbox:
    """Those who have to do with control messages."""

    table: PeerTable
    book: GossipBook
    links: ControlLinks
    plane: StagePlane
    evidence: Mailbox[Evidence, None]
    metrics: Metrics
    keeps: Callable[[ModelId, BlockRange], bool]  # whether blocks are here, and not about to go

    async def serve(self, mailbox: Mailbox[ControlReceived, None]) -> None:
        """Take messages until cancelled."""
        with mailbox.serve() as letters:
            async for letter in letters:
                received = letter.question
                try:
                    await self._take(received)
                except PeerUnreachable:
                    _log.debug("peer left before its answer", peer=short(received.link.peer))

    async def _take(self, received: ControlReceived) -> None:
        sender, message = received.link.peer, received.message
        match message:
            case Records():
                for record in message.records:
                    self._take_record(sender, record)
            case SignedRecord():
                self._take_record(sender, message)
            case Introductions():
                for each in message.peers:
                    self.table.learn(each.peer, each.addresses)
            case IntroductionsWanted():
                await self._reply(received, self._introductions(sender, message.count))
            case TicketRequest():
                try:
                    if self.table.is_banned(sender):
                        raise PeerRefused("this node has had too much trouble with you")
                    answer: ControlMessage = self.plane.grant(sender, message)
                except MeshnodeError as error:
                    answer = failure(error)
                await self._reply(received, answer)
            case KeptWanted():
                is_range = message.start < message.end
                kept = is_range and self.keeps(message.model, BlockRange(message.start, message.end))
                await self._reply(received, Kept(kept))
            case _:
                _log.debug("message for nobody", peer=short(sender), kind=type(message).__name__)

    def _take_record(self, sender: PeerId, record: SignedRecord) -> None:
        try:
            offer = self.book.accept(record)
        except StaleRecord as error:
            self.metrics.network_stale_records_total.inc()
            if record.signer == sender:  # who hands it on may have another clock, and took it in good faith
                self._report(Evidence(sender, Misdeed.STALE, str(error)))
            return
        except PeerMisbehaved as error:
            self._report(Evidence(sender, Misdeed.FORGED, str(error)))
            return
        neighbour = self.links.neighbour(sender)
        if neighbour is not None:
            neighbour.heard(record)
        if offer is not None:
            self.table.heard(offer)
            self.links.spread(offer.peer)

    def _introductions(self, asker: PeerId, count: int) -> Introductions:
        known = [
            Introduction(info.peer, info.addresses)
            for info in self.table.peers()
            if info.connected and info.addresses and info.peer != asker
        ]
        return Introductions(tuple(known[: max(0, min(count, 64))]))

    async def _reply(self, received: ControlReceived, message: ControlMessage) -> None:
        await self.links.to(received.link.peer).send(message, exchange=received.exchange)

    def _report(self, evidence: Evidence) -> None:
        try:
            self.evidence.tell_nowait(evidence)
        except trio.WouldBlock:
            return  # as much is waiting already
