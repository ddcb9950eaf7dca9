"""The control link of each peer, from its greeting to its end: one per peer, fed with gossip, told to the peer table."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from random import Random

import attrs
import structlog
import trio

from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerRefused, PeerUnreachable
from meshnode.network.gossip import GossipBook
from meshnode.network.greetings import Greeter
from meshnode.network.links import Link, LinkSettings
from meshnode.network.neighbours import Neighbour
from meshnode.network.peers import PeerTable
from meshnode.network.ports import Inbound, PeerStream
from meshnode.observe.metrics import Metrics
from meshnode.types.ids import PeerId, short
from meshnode.wire.control_messages import ControlMessage, Records
from meshnode.wire.protocols import CONTROL_MESSAGES

__all__ = ["ControlLinks", "LinkPorts"]

_FOR_ROUTES = 16  # links at once beyond the limit, to those that sessions run over
_BANNED = "this node has had too much trouble with you"
_CLOCK_TOLERANCE = 300.0  # seconds a peer's clock may be off before it is worth a line in the log

_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class LinkPorts:
    """Who hears of what happens on links."""

    deliver: Callable[[Inbound[ControlMessage]], Awaitable[None]]  # takes messages; may wait
    found_direct_way: Callable[[PeerId], None]  # a direct link takes the place of a relayed one
    misbehaved: Callable[[PeerId, PeerMisbehaved], None]  # broke the protocol
    metrics: Metrics = attrs.field(factory=Metrics)
    greeted: Callable[[PeerId], None] = lambda _: None  # has said a valid Hello, so it belongs to our network


@attrs.define(eq=False)
class ControlLinks:
    """All control links of one incarnation of the network."""

    greeter: Greeter
    limit: int  # links at once, those apart that routes need
    table: PeerTable
    book: GossipBook
    ports: LinkPorts
    settings: LinkSettings = attrs.field(factory=LinkSettings)
    random: Random = attrs.field(factory=Random, init=False)
    _links: dict[PeerId, Link[ControlMessage]] = attrs.field(factory=dict, init=False)
    _neighbours: dict[PeerId, Neighbour] = attrs.field(factory=dict, init=False)
    _beyond: OrderedDict[Link[ControlMessage], None] = attrs.field(
        factory=OrderedDict, init=False
    )  # the limit; the one unused longest comes first

    def __len__(self) -> int:
        return len(self._links)

    @property
    def room(self) -> int:
        """How many more there may be."""
        return max(0, self.limit - len(self._links) + len(self._beyond))

    def to(self, peer: PeerId) -> Link[ControlMessage]:
        """Return the live link to a peer. Raises PeerUnreachable."""
        link = self._links.get(peer)
        if link is None or link.closed.is_set():
            raise PeerUnreachable(f"there is no control link to {peer}")
        if link in self._beyond:
            self._beyond.move_to_end(link)
        return link

    def peers(self) -> frozenset[PeerId]:
        """Return who is linked."""
        return frozenset(self._links)

    def relayed(self) -> frozenset[PeerId]:
        """Return who is linked through a third node."""
        return frozenset(peer for peer, link in self._links.items() if link.is_relayed)

    def neighbour(self, peer: PeerId) -> Neighbour | None:
        """Return what a linked peer has of the book."""
        return self._neighbours.get(peer)

    def spread(self, signer: PeerId) -> None:
        """Hand on what is new in the book: our own word to all neighbours, another's to one of those who may lack it."""
        lacking = [neighbour for neighbour in self._neighbours.values() if neighbour.lacks(signer)]
        if signer != self.greeter.own and lacking:
            lacking = [self.random.choice(lacking)]
        for neighbour in lacking:
            neighbour.tell(signer)

    def part_with(self, peer: PeerId) -> None:
        """End the link of a peer that has been banned."""
        if (link := self._links.get(peer)) is not None:
            link.close(PeerRefused(_BANNED))

    async def serve(
        self,
        stream: PeerStream,
        *,
        opened: bool,
        for_route: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the link over a stream to its end; started once both sides have greeted. `for_route`: a session needs it.

        Raises PeerRefused, PeerUnreachable or WireError if it does not come that far. Cancellation closes the link.
        """
        link = Link(stream.peer, stream, CONTROL_MESSAGES, opened, self.settings, is_relayed=stream.is_relayed)
        try:
            terms = await self.greeter.greet(link, for_route=for_route)
        except PeerMisbehaved as error:
            self.ports.misbehaved(link.peer, error)
            raise
        self.ports.greeted(link.peer)
        if abs(terms.skew) > _CLOCK_TOLERANCE:
            self.ports.metrics.network_wrong_clocks_total.inc()
            _log.warning("a clock is wrong", peer=short(link.peer), seconds_ahead=round(terms.skew))
        try:
            self._admit(link, lan=stream.is_lan, for_route=terms.for_route)
        except MeshnodeError as error:
            link.close(error)
            await link.end()
            raise
        try:
            task_status.started()
            await self._run(link)
        finally:
            self._leave(link)

    def _admit(self, link: Link[ControlMessage], *, lan: bool, for_route: bool) -> None:
        """Make this the link to its peer. Raises PeerRefused when there is another, or there are too many."""
        if self.table.is_banned(link.peer):
            raise PeerRefused(_BANNED)
        existing = self._links.get(link.peer)
        if existing is None and not self.room:
            if not for_route:
                raise PeerRefused(f"this node has {self.limit} peers already")
            self._make_way()
            self._beyond[link] = None
        if existing is not None:
            if not self._is_better(link, existing):
                raise PeerRefused("the two of us have a link already")
            if existing in self._beyond:
                del self._beyond[existing]
                self._beyond[link] = None
        self._links[link.peer] = link
        self._neighbours[link.peer] = neighbour = Neighbour(link.peer, self.book)
        link.compare(neighbour)
        if existing is not None:
            existing.close("a newer link has taken its place")
            if existing.is_relayed and not link.is_relayed:
                self.ports.found_direct_way(link.peer)
        self.book.revive(link.peer)
        self.table.linked(link, lan=lan)
        _log.info("peer linked", peer=short(link.peer), relayed=link.is_relayed, links=len(self._links))

    def _make_way(self) -> None:
        """Let the link go that was unused longest, where routes have all places beyond the limit."""
        if len(self._beyond) >= _FOR_ROUTES:
            oldest, _ = self._beyond.popitem(last=False)
            oldest.close(PeerRefused("another route needs the place of this link; come back when one leads here again"))

    def _is_better(self, link: Link[ControlMessage], existing: Link[ControlMessage]) -> bool:
        """Say whether a link takes the place of another one to the same peer; both sides come to the same answer."""
        if link.is_relayed is not existing.is_relayed:
            return existing.is_relayed
        # When both have dialled at once, the link stays that the smaller id opened.
        return existing.opened is link.opened or link.opened is (self.greeter.own < link.peer)

    async def _run(self, link: Link[ControlMessage]) -> None:
        neighbour = self._neighbours[link.peer]

        async def send(records: Records) -> None:
            await link.send(records)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_feed, neighbour, send)
            await link.run(self.ports.deliver)
            nursery.cancel_scope.cancel()

    def _leave(self, link: Link[ControlMessage]) -> None:
        why = link.ended_by
        _log.info("peer link ended", peer=short(link.peer), why=str(why))
        self._beyond.pop(link, None)
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            del self._neighbours[link.peer]
            is_gone = not (link.terms and link.terms.for_route and isinstance(why, PeerRefused))
            self.table.unlinked(link, is_gone=is_gone)
            if is_gone:  # and has not only given the place of the link to another route
                self.book.bury(link.peer)
        if isinstance(why, PeerMisbehaved):
            _log.warning("peer broke the protocol", peer=short(link.peer), error=str(why))
            self.ports.misbehaved(link.peer, why)


async def _feed(neighbour: Neighbour, send: Callable[[Records], Awaitable[None]]) -> None:
    try:
        await neighbour.feed(send)
    except PeerUnreachable:
        return  # the link is ending
