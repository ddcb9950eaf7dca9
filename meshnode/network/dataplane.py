"""The data plane: the links that sessions run over, direct where that is possible, and through the host where it is not.

A link is opened by whoever has something to send, with a ticket that the other side gives over the control link: where it
listens, the hash of the certificate it will present, and a token that is good once. Without a direct way the same messages
go over a stream of the host, which may be relayed, and a direct link takes its place as soon as one can be made; sessions
that run over the old one end there.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import structlog
import trio

from meshnode.crypto.tls import dialler_context
from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerRefused, PeerUnreachable
from meshnode.flow.events import first_of
from meshnode.flow.periodic import Ticker
from meshnode.network.bulk_lines import BulkLine, open_line
from meshnode.network.bulk_reception import BulkReception
from meshnode.network.direct import Anteroom, dial, listen
from meshnode.network.greetings import Greeter
from meshnode.network.links import Link, LinkSettings
from meshnode.network.ports import PeerStream, Shelf
from meshnode.network.reception import Reception
from meshnode.network.right_of_way import RightOfWay
from meshnode.network.stage_links import Received
from meshnode.network.tickets import Purpose
from meshnode.network.upload_limits import UploadLimits
from meshnode.types.ids import PeerId, short
from meshnode.types.rings import RingPlace
from meshnode.wire.control_messages import Ticket, TicketRequest
from meshnode.wire.protocols import STAGE_MESSAGES
from meshnode.wire.stage_messages import StageMessage
from meshnode.wire.versions import STAGE_PROTOCOL

__all__ = ["DataPlane", "DataPlanePorts", "DataPlaneSettings"]

_log = structlog.get_logger(__name__)
_MAX_HOSTS = 8  # in a ticket

_StageLink = Link[StageMessage]


@attrs.frozen(eq=False)
class DataPlanePorts:
    """What the data plane needs of others."""

    reach: Callable[
        [PeerId], Awaitable[object]
    ]  # sees to a control link; raises PeerError leafs when there can be none
    ask_ticket: Callable[[PeerId, TicketRequest], Awaitable[Ticket]]  # over the control link
    open_stream: Callable[[PeerId, str], Awaitable[PeerStream]]  # of the host, by protocol
    deliver: Callable[[Received], Awaitable[None]]  # takes what comes in; may wait
    hosts: Callable[[], Sequence[str]]  # IP addresses at which peers may find this machine, best first
    report: Callable[[PeerId | None, MeshnodeError], None]  # hears of each refusal and offence; None: a stranger's
    shelf: Shelf | None = None  # what others may fetch; None: nothing


@attrs.frozen
class DataPlaneSettings:
    """Bounds. Times in seconds."""

    listen: tuple[str, ...] = ("0.0.0.0", "::")  # noqa: S104  # peers are elsewhere; tickets say who may come in
    port: int = 0  # 0: any
    bulk_port: int = 0  # 0: any
    handshake: float = 5.0  # for a stranger to show a ticket
    strangers: int = 128  # connections that have shown none
    direct: float = 2.0  # for a direct link, before a stream of the host is used
    first_retry: float = 5.0  # then doubling, while a link is not direct
    last_retry: float = 300.0
    idle: float = 600.0  # without a message, after which a link that we have opened is closed
    inbound_per_peer: int = 8  # links; one too many ends the one unused longest
    link: LinkSettings = attrs.field(factory=LinkSettings)
    uploads: UploadLimits = attrs.field(factory=UploadLimits)
    fetching: int = 8  # connections over which shards are fetched at once


@attrs.define(eq=False)
class _Opening:
    """A link that is being made, for all who wait for it."""

    done: trio.Event = attrs.field(factory=trio.Event)
    error: MeshnodeError | None = None


@attrs.define(eq=False)
class DataPlane:
    """One incarnation. Links live as long as `run`."""

    _greeter: Greeter
    _ports: DataPlanePorts
    _settings: DataPlaneSettings = attrs.field(factory=DataPlaneSettings)
    way: RightOfWay = attrs.field(factory=RightOfWay, init=False)  # of what sessions send, before shards
    port: int = attrs.field(default=0, init=False)  # once it runs
    _reception: Reception = attrs.field(init=False)
    _giving: BulkReception | None = attrs.field(default=None, init=False)
    _threads: trio.CapacityLimiter = attrs.field(init=False)  # that fetch shards
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _openings: dict[PeerId, _Opening] = attrs.field(factory=dict, init=False)
    _current: dict[PeerId, _StageLink] = attrs.field(factory=dict, init=False)  # what new sessions use
    _opened: set[_StageLink] = attrs.field(factory=set, init=False)  # by us, those that were replaced among them
    _inbound: dict[PeerId, set[_StageLink]] = attrs.field(factory=dict, init=False)
    _nudges: dict[PeerId, trio.Event] = attrs.field(factory=dict, init=False)  # end the pause between two tries

    def __attrs_post_init__(self) -> None:
        anteroom = Anteroom(self._settings.strangers, self._settings.handshake)
        self._reception = Reception(self._greeter, anteroom, self._settings.link, self._ports.report)
        self._threads = trio.CapacityLimiter(self._settings.fetching)
        if self._ports.shelf is not None:
            self._giving = BulkReception(
                self._reception.credentials,
                self._reception.tickets,
                self._ports.shelf,
                self._settings.uploads,
                self._ports.report,
                self.way,
            )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and keep links until cancelled; then all of them close. Raises ConfigError when the port is taken."""
        listeners = await listen(self._settings.listen, self._settings.port)
        self.port = listeners[0].socket.getsockname()[1]
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._close_idle)
                if self._giving is not None:
                    await self._nursery.start(self._giving.run, self._settings.listen, self._settings.bulk_port)
                task_status.started()
                await trio.serve_listeners(self._receive, listeners, handler_nursery=self._nursery)
        finally:
            self._nursery = None

    # For those who send

    async def to(self, peer: PeerId) -> _StageLink:
        """Return the live link that we have opened to a peer, or open one. Raises PeerUnreachable.

        All who ask meanwhile get the same link; cancelling one of them does not end the attempt. Returns at once, without
        a checkpoint, when there is a link: this is asked for every token.
        """
        self.way.activations_pass()
        if (link := self.existing(peer)) is not None:
            return link
        opening = self._openings.get(peer)
        if opening is None:
            if self._nursery is None:
                raise PeerUnreachable(f"{peer} cannot be reached: the network of this node is down")
            opening = self._openings[peer] = _Opening()
            self._nursery.start_soon(self._open, peer, opening)
        await opening.done.wait()
        if (link := self.existing(peer)) is None:
            raise PeerUnreachable(str(opening.error or f"the link to {peer} ended at once")) from opening.error
        return link

    def existing(self, peer: PeerId) -> _StageLink | None:
        """Return the live link, if we have opened one."""
        link = self._current.get(peer)
        return None if link is None or link.closed.is_set() else link

    def ring_place(self) -> RingPlace | None:
        """Return where workers of this node can be found; None while it knows of no address."""
        hosts = tuple(self._ports.hosts())[:_MAX_HOSTS]
        credentials = self._reception.credentials
        return RingPlace(self._settings.listen, hosts, credentials.fingerprint, credentials.pem) if hosts else None

    def activations_pass(self) -> None:
        """Note that activations pass, be it between workers."""
        self.way.activations_pass()

    @asynccontextmanager
    async def fetching_from(self, peer: PeerId) -> AsyncIterator[BulkLine]:
        """Connect to a peer for shards and yield the line; leaving closes it. Never through a third node.

        Raises PeerUnreachable, PeerRefused.
        """
        await self._ports.reach(peer)
        ticket = await self._ports.ask_ticket(peer, TicketRequest(Purpose.BULK.value))
        async with open_line(peer, ticket, self._threads) as line:
            yield line

    # For those who hear from peers

    def found_direct_way(self, peer: PeerId) -> None:
        """Try at once to put direct links in the place of those over the host."""
        if (nudge := self._nudges.get(peer)) is not None:
            nudge.set()

    def part_with(self, peer: PeerId) -> None:
        """End all links with a peer that has been banned, and take back its tickets."""
        self._reception.tickets.revoke(peer)
        opened = {link for link in self._opened if link.peer == peer}
        for link in opened | self._inbound.get(peer, set()):
            link.close(PeerRefused("this node has had too much trouble with you"))
        if self._giving is not None:
            self._giving.part_with(peer)

    def grant(self, peer: PeerId, request: TicketRequest) -> Ticket:
        """Give `peer` leave to open a link. Raises PeerRefused for a purpose we do not know, or without an address."""
        try:
            purpose = Purpose(request.purpose)
        except ValueError as error:
            raise PeerRefused(f"this node has no links for {request.purpose!r}") from error
        hosts = tuple(self._ports.hosts())[:_MAX_HOSTS]
        if not hosts or not self.port:
            raise PeerRefused("this node knows of no address where it could be reached directly")
        tickets = self._reception.tickets
        port = self.port
        if purpose is Purpose.BULK:
            port = 0 if self._giving is None else self._giving.port
            if not port:
                raise PeerRefused("this node gives no shards to others")
        token = tickets.issue(peer, purpose)
        return Ticket(hosts, port, self._reception.credentials.fingerprint, token, tickets.lifetime)

    async def accept_stream(self, stream: PeerStream) -> None:
        """Serve a link that a peer has opened over the host, to its end. Cancellation closes it."""
        link = await self._reception.welcome(stream)
        if link is not None:
            await self._serve_inbound(link)

    # Opening

    async def _open(self, peer: PeerId, opening: _Opening) -> None:
        try:
            await self._ports.reach(peer)
            try:
                link = await self._open_direct(peer)
            except MeshnodeError as error:
                _log.info("no direct link", peer=short(peer), why=str(error))
                link = await self._open_over_host(peer)
                self._spawn(self._improve, peer, link)
            self._start(peer, link)
        except MeshnodeError as error:
            opening.error = error
        finally:
            del self._openings[peer]
            opening.done.set()

    async def _open_direct(self, peer: PeerId) -> _StageLink:
        """Ask for a ticket and use it. Raises PeerUnreachable, PeerRefused, PeerMisbehaved, VersionMismatch."""
        with trio.move_on_after(self._settings.direct):
            ticket = await self._ports.ask_ticket(peer, TicketRequest(Purpose.ACTIVATIONS.value))
            stream = await dial(ticket, dialler_context())
            try:
                await stream.send_all(ticket.token)
            except BaseException as error:
                await trio.aclose_forcefully(stream)
                if not isinstance(error, trio.BrokenResourceError):
                    raise
                raise PeerUnreachable(f"{peer} hung up") from error
            link = Link(peer, stream, STAGE_MESSAGES, True, self._settings.link)
            await self._greet(link)
            return link
        raise PeerUnreachable(f"no direct way to {peer} was found within {self._settings.direct:.0f} s")

    async def _open_over_host(self, peer: PeerId) -> _StageLink:
        stream = await self._ports.open_stream(peer, STAGE_PROTOCOL)
        link = Link(peer, stream, STAGE_MESSAGES, True, self._settings.link, is_relayed=stream.is_relayed)
        await self._greet(link)
        return link

    async def _improve(self, peer: PeerId, link: _StageLink) -> None:
        """Put a direct link in the place of one over the host, however long it takes."""
        pause = self._settings.first_retry
        try:
            while True:
                nudge = self._nudges[peer] = trio.Event()
                with trio.move_on_after(pause):
                    await first_of(link.closed, nudge)
                if link.closed.is_set():
                    return
                try:
                    better = await self._open_direct(peer)
                except MeshnodeError as error:
                    _log.debug("still no direct link", peer=short(peer), why=str(error))
                    pause = min(pause * 2, self._settings.last_retry)
                else:
                    self._start(peer, better)
                    return
        finally:
            self._nudges.pop(peer, None)

    async def _greet(self, link: _StageLink) -> None:
        try:
            await self._greeter.greet(link, timeout=self._settings.handshake)
        except PeerMisbehaved as error:
            self._ports.report(link.peer, error)
            raise

    # Keeping

    def _start(self, peer: PeerId, link: _StageLink) -> None:
        self._current[peer] = link
        self._opened.add(link)
        self._spawn(self._keep, peer, link)

    async def _keep(self, peer: PeerId, link: _StageLink) -> None:
        try:
            await self._serve(link)
        finally:
            self._opened.discard(link)
            if self._current.get(peer) is link:
                del self._current[peer]

    async def _serve(self, link: _StageLink) -> None:
        _log.info("stage link", peer=short(link.peer), ours=link.opened, relayed=link.is_relayed)
        try:
            await link.run(self._deliver)
        except Exception as error:  # noqa: BLE001  # the link's rim
            _log.error("stage link crashed", peer=short(link.peer), exc_info=error)
        if isinstance(link.ended_by, PeerMisbehaved):
            self._ports.report(link.peer, link.ended_by)
        _log.info("stage link ended", peer=short(link.peer), why=str(link.ended_by))

    async def _deliver(self, received: Received) -> None:
        self.way.activations_pass()
        await self._ports.deliver(received)

    async def _close_idle(self) -> None:
        async for _ in Ticker(self._settings.idle / 10):
            long_ago = trio.current_time() - self._settings.idle
            for link in list(self._opened):
                if link.is_idle and link.used_at <= long_ago:
                    link.close(f"unused for {self._settings.idle:.0f} s")

    # Receiving

    async def _receive(self, stream: trio.SocketStream) -> None:
        link = await self._reception.receive(stream)
        if link is not None:
            await self._serve_inbound(link)

    async def _serve_inbound(self, link: _StageLink) -> None:
        links = self._inbound.setdefault(link.peer, set())
        if len(links) >= self._settings.inbound_per_peer:
            oldest = min(links, key=lambda each: each.used_at)
            oldest.close("this peer has opened too many links")
            links.discard(oldest)
        links.add(link)
        try:
            await self._serve(link)
        finally:
            links.discard(link)
            if not links and self._inbound.get(link.peer) is links:
                del self._inbound[link.peer]

    def _spawn(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        assert self._nursery is not None  # only tasks of this nursery come here
        self._nursery.start_soon(function, *args)
