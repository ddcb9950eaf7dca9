"""The NetworkManager: owns the libp2p host, the peer table and the links, and keeps this node connected.

One incarnation is one host. When libp2p crashes, the incarnation ends and the next one starts with the table, the address
book and the gossip book that outlive it; links are made again, and sessions go on over them.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import attrs
import structlog
import trio

from meshnode import __version__
from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerRefused, PeerUnreachable, StoreError
from meshnode.flow.changes import Changes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.network.address_book import AddressBook
from meshnode.network.addresses import chosen, direct_only
from meshnode.network.control_inbox import ControlInbox
from meshnode.network.control_links import ControlLinks, LinkPorts
from meshnode.network.dialing import Dialling, peer_of
from meshnode.network.gateway import StageGateway
from meshnode.network.gossip import GossipBook
from meshnode.network.greetings import Greeter
from meshnode.network.holdings import Holdings, keeps, told
from meshnode.network.host_ports import Discovery, Host, StagePlane
from meshnode.network.peers import PeerTable
from meshnode.network.places import Places
from meshnode.network.ports import MessageLink, PeerStream
from meshnode.network.providing import Providing
from meshnode.network.stage_links import AnyReceived, ControlReceived
from meshnode.observe.metrics import Metrics
from meshnode.supervise.subsystem import Pulse
from meshnode.types.blocks import BlockRange
from meshnode.types.evidence import Evidence, Misdeed
from meshnode.types.ids import ModelId, PeerId, short
from meshnode.types.peers import Liveness, Offer, Offering, Room
from meshnode.wire.control_messages import ControlMessage, IntroductionsWanted
from meshnode.wire.versions import CONTROL_PROTOCOL, STAGE_PROTOCOL

__all__ = ["DialRequest", "NetworkManager", "NetworkResources", "NetworkSettings", "Reach"]

_LOOK_EVERY = 1.0  # seconds
_DIALS_AT_ONCE = 8
_ADDRESSES_TOLD = 8
_GIVEN_UP_AFTER = 3  # dials in a row that found nobody: some five seconds
_RENEW_EVERY = 600.0  # seconds: a record that is not renewed for three hours is dropped by others
_NOTED_AHEAD = 600_000  # sequences, which are milliseconds
_PUBLISH_PACE = 1.0  # seconds between two offers of ours
_EXPIRE_EVERY = 60.0

_log = structlog.get_logger(__name__)

Reach = Callable[[PeerId], Awaitable[MessageLink[ControlMessage]]]
"""Gives the control link to a peer that a route leads through, dialling it if there is none. Raises PeerError leafs."""

OpenHost = Callable[[Mapping[str, Callable[[PeerStream], Awaitable[None]]]], AbstractAsyncContextManager[Host]]


@attrs.frozen
class DialRequest:
    """A wish to be connected: answered with the peer's id, or refused with why not."""

    addresses: tuple[str, ...]


@attrs.frozen
class NetworkSettings:
    """What the settings say of the mesh."""

    network_id: str
    bootstrap: tuple[str, ...]
    announce: tuple[str, ...]
    max_peers: int
    node: str  # host name, for people


@attrs.frozen(eq=False)
class NetworkResources:
    """What outlives an incarnation of the network."""

    own: PeerId
    table: PeerTable
    book: GossipBook
    addresses: AddressBook
    gateway: StageGateway
    inbound: Mailbox[AnyReceived, None]  # to the MessageDispatcher
    control: Mailbox[ControlReceived, None]  # from the MessageDispatcher
    dials: Mailbox[DialRequest, PeerId]
    evidence: Mailbox[Evidence, None]
    offering: Latest[Offering]
    listening: Latest[tuple[str, ...]]  # our multiaddrs with /p2p/, for status and invitations
    metrics: Metrics = attrs.field(factory=Metrics)
    room: Latest[Room | None] = attrs.field(factory=lambda: Latest(None))  # what we say about placement
    holdings: Holdings | None = None  # what peers and the hash table are told of, and what is sought; None: nothing
    shares: bool = True  # False: nobody is told of any holdings, nor of room for others'; what is missing is sought
    leaving: Latest[tuple[ModelId, BlockRange] | None] = attrs.field(factory=lambda: Latest(None))  # about to be let go


@attrs.define(eq=False)
class NetworkManager:
    """One incarnation."""

    _resources: NetworkResources
    _settings: NetworkSettings
    _open_host: OpenHost
    _stage_plane: Callable[[Reach, Host], StagePlane]
    _pulse: Pulse
    _discovery: Discovery | None = None  # None: the local network is not asked
    _dialling: Dialling[PeerId] = attrs.field(factory=Dialling, init=False)
    _reaching: Dialling[PeerId] = attrs.field(factory=Dialling, init=False)  # for routes, which wait for no pause
    _under_way: set[PeerId] = attrs.field(factory=set, init=False)  # being dialled
    _links: ControlLinks = attrs.field(init=False)
    _plane: StagePlane | None = attrs.field(default=None, init=False)
    _host: Host | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        shared = self._resources
        greeter = Greeter(shared.own, self._settings.network_id)
        ports = LinkPorts(self._deliver, self._found_direct_way, self._hold_against, shared.metrics, self._vouch)
        self._links = ControlLinks(greeter, self._settings.max_peers, shared.table, shared.book, ports)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be part of the mesh until cancelled; then every link closes. A crash of the host ends this with its error."""
        shared = self._resources
        handlers = {CONTROL_PROTOCOL: self._accept_control, STAGE_PROTOCOL: self._accept_stage}
        try:
            async with self._open_host(handlers) as host, trio.open_nursery() as nursery:
                self._host = host
                reach = partial(self._reach, host, nursery)
                self._plane = plane = self._stage_plane(reach, host)
                await nursery.start(plane.run)
                shared.gateway.connect(plane, reach)
                self._tell_addresses(host)
                inbox = ControlInbox(
                    shared.table, shared.book, self._links, plane, shared.evidence, shared.metrics, self._keeps
                )
                nursery.start_soon(inbox.serve, shared.control)
                nursery.start_soon(self._publish)
                nursery.start_soon(self._expire)
                nursery.start_soon(self._part_with_banned, plane)
                nursery.start_soon(self._serve_dials, host, nursery)
                nursery.start_soon(Places(host, shared.table).run)
                if self._discovery is not None:
                    nursery.start_soon(self._discovery.run, shared.listening, shared.table.learn)
                sought: set[PeerId] = set()
                if shared.holdings is not None:
                    providing = Providing(host, shared.holdings, shared.table, sought)
                    if shared.shares:
                        nursery.start_soon(providing.announce)
                    nursery.start_soon(providing.look)
                task_status.started()
                await self._keep_connected(host, nursery, sought)
        finally:
            shared.gateway.connect(None)
            shared.listening.set(())

    async def drain(self) -> None:
        """Nothing to do: sessions have been drained before."""

    # Links

    async def _deliver(self, received: ControlReceived) -> None:
        await self._resources.inbound.tell(received)

    def _found_direct_way(self, peer: PeerId) -> None:
        if self._plane is not None:
            self._plane.found_direct_way(peer)

    def _vouch(self, peer: PeerId) -> None:
        if self._host is not None:
            self._host.vouch(peer)

    def _hold_against(self, peer: PeerId, error: PeerMisbehaved) -> None:
        with contextlib.suppress(trio.WouldBlock):  # as much is waiting already against somebody
            self._resources.evidence.tell_nowait(Evidence(peer, Misdeed.MALFORMED, str(error)))

    async def _accept_control(self, stream: PeerStream) -> None:
        """Serve a link that a peer has opened."""
        try:
            await self._links.serve(stream, opened=False)
        except MeshnodeError as error:
            _log.info("peer not admitted", peer=short(stream.peer), why=str(error))

    async def _accept_stage(self, stream: PeerStream) -> None:
        """Serve a stage link that comes over the host, because no direct way was found."""
        if self._plane is not None and not self._resources.table.is_banned(stream.peer):
            await self._plane.accept_stream(stream)

    async def _part_with_banned(self, plane: StagePlane) -> None:
        async for _ in self._resources.table.failures.values():
            for peer in self._resources.table.banned():
                self._links.part_with(peer)
                plane.part_with(peer)

    async def _connect(
        self, host: Host, nursery: trio.Nursery, addresses: Sequence[str], *, for_route: bool = False
    ) -> PeerId:
        """Dial, greet, and return once the link is up. Raises PeerUnreachable, PeerRefused, PeerMisbehaved.

        A relayed link gives way to a direct one, if the dial has found one.
        """
        peer = await host.connect(addresses)
        is_relayed = peer in self._links.relayed()
        if is_relayed or peer not in self._links.peers():
            stream = await host.open_stream(peer, CONTROL_PROTOCOL)
            if is_relayed and stream.is_relayed:
                await stream.aclose()
            else:
                serve = partial(self._links.serve, stream, opened=True, for_route=for_route)
                await nursery.start(lambda task_status: serve(task_status=task_status))
        self._dialling.reached(peer)
        self._resources.table.learn(peer, addresses, worked=True)
        try:
            await self._resources.addresses.reached(peer, addresses, time.time())
        except StoreError as error:
            _log.warning("address not kept", peer=short(peer), error=str(error))
        await self._links.to(peer).send(IntroductionsWanted(16))
        return peer

    async def _reach(self, host: Host, nursery: trio.Nursery, peer: PeerId) -> MessageLink[ControlMessage]:
        if peer not in self._links.peers():
            try:
                await self._connect(host, nursery, self._known()[peer], for_route=True)
            except KeyError:
                raise PeerUnreachable(f"no address of {peer} is known") from None
            except PeerUnreachable:
                if self._reaching.failed(peer) >= _GIVEN_UP_AFTER:
                    self._give_up(peer)
                raise
            self._reaching.reached(peer)
        return self._links.to(peer)

    async def _try(self, host: Host, nursery: trio.Nursery, peer: PeerId, addresses: Sequence[str]) -> None:
        self._under_way.add(peer)
        try:
            await self._connect(host, nursery, addresses)
        except MeshnodeError as error:
            failures = self._dialling.failed(peer)
            if failures >= _GIVEN_UP_AFTER and not isinstance(error, PeerRefused):
                self._give_up(peer)
            log = _log.info if isinstance(error, PeerRefused) else _log.debug  # somebody is there, and says why not
            log("peer not reached", peer=short(peer), error=str(error))
        finally:
            self._under_way.discard(peer)

    def _give_up(self, peer: PeerId) -> None:
        """Forget what gossip has of a peer that nobody finds where it says it is: it is old, or of no use from here."""
        if peer not in self._links.peers():
            self._resources.book.bury(peer)
            self._resources.table.forget_offer(peer)

    async def _keep_connected(self, host: Host, nursery: trio.Nursery, sought: Collection[PeerId]) -> None:
        """Dial whoever is known and not linked, a few at a time; one that hangs keeps no other waiting."""
        table, wanted, seen = self._resources.table, dict[PeerId, tuple[str, ...]](), frozenset[PeerId]()
        changes = Changes((table.changed, table.failures))
        while True:
            self._pulse.touch()
            self._tell_addresses(host)
            if changes.there_are() or seen != sought:
                wanted, seen = self._wanted(sought), frozenset(sought)
            due = [peer for peer in self._dialling.due(wanted) if peer not in self._under_way]
            for peer in due[: _DIALS_AT_ONCE - len(self._under_way)]:
                nursery.start_soon(self._try, host, nursery, peer, wanted[peer])
            await trio.sleep(_LOOK_EVERY)

    def _wanted(self, sought: Collection[PeerId]) -> dict[PeerId, tuple[str, ...]]:
        """Return whom to dial, most wanted first, as many as there is room for, and where.

        First come those named to begin with, then those who hold what is missing, those with offers, those known of old.
        Whoever is linked through a third node is dialled where it is reached without.
        """
        linked, relayed, wanted = self._links.peers(), self._links.relayed(), self._known(sought)
        banned, own = self._resources.table.is_banned, self._resources.own
        allowed = [peer for peer in wanted if peer != own and not banned(peer)]
        apart = {peer: wanted[peer] for peer in allowed if peer not in linked and wanted[peer]}
        through = {peer: direct for peer in allowed if peer in relayed and (direct := direct_only(wanted[peer]))}
        return dict(list(apart.items())[: self._links.room]) | through

    def _known(self, sought: Collection[PeerId] = ()) -> dict[PeerId, tuple[str, ...]]:
        """Return everybody we have heard of, most wanted first, and where."""
        shared = self._resources
        wanted: dict[PeerId, tuple[str, ...]] = {}
        for address in self._settings.bootstrap:
            peer = peer_of([address])
            if peer is not None:
                wanted[peer] = (*wanted.get(peer, ()), address)
        known = sorted(
            shared.table.peers(),
            key=lambda info: (info.peer not in sought, info.liveness is Liveness.DEAD, info.offer is None),
        )
        for info in known:
            wanted[info.peer] = (*wanted.get(info.peer, ()), *info.addresses)
        for old in shared.addresses.peers():
            wanted.setdefault(old.peer, old.addresses)
        return wanted

    async def _serve_dials(self, host: Host, nursery: trio.Nursery) -> None:
        with self._resources.dials.serve() as letters:
            async for letter in letters:
                try:
                    letter.answer(await self._connect(host, nursery, letter.question.addresses))
                except MeshnodeError as error:
                    letter.refuse(error)

    # What we say of ourselves

    def _keeps(self, model: ModelId, blocks: BlockRange) -> bool:
        leaving = self._resources.leaving.value
        goes = leaving is not None and leaving[0] == model and leaving[1].overlap(blocks) is not None
        return not goes and self._resources.shares and keeps(self._resources.holdings, model, blocks)

    def _tell_addresses(self, host: Host) -> None:
        addresses = tuple(dict.fromkeys((*self._settings.announce, *host.listen_addresses())))
        if addresses != self._resources.listening.value:
            self._resources.listening.set(addresses)

    async def _publish(self) -> None:
        """Publish our offer when it changes, and now and then so that it does not expire."""
        shared = self._resources
        while True:
            offering, listening = shared.offering, shared.listening
            revision = None if shared.holdings is None else shared.holdings.revision
            watched: list[Latest[Any]] = [offering, listening, shared.room, *([] if revision is None else [revision])]
            seen = [latest.version for latest in watched]
            holdings, room = told(shared.holdings, shared.room.value, shares=shared.shares)
            offer = Offer(
                peer=shared.own,
                sequence=shared.book.next_sequence(),
                issued=shared.book.clock(),
                version=__version__,
                addresses=chosen(listening.value, _ADDRESSES_TOLD),
                stages=offering.value.stages,
                sessions=offering.value.sessions,
                node=self._settings.node,
                room=room,
                holdings=holdings,
            )
            try:
                shared.book.publish(offer)
                self._links.spread(shared.own)
                if offer.sequence > shared.addresses.sequence:  # seldom: it is noted ahead
                    await shared.addresses.said(offer.sequence + _NOTED_AHEAD)
            except (ValueError, StoreError) as error:
                _log.error("offer not published, or not noted", error=str(error))
            await trio.sleep(_PUBLISH_PACE)
            with trio.move_on_after(_RENEW_EVERY):
                async with trio.open_nursery() as nursery:
                    for latest, version in zip(watched, seen, strict=True):
                        nursery.start_soon(_cancel_at_change, latest, version, nursery.cancel_scope)

    async def _expire(self) -> None:
        while True:
            await trio.sleep(_EXPIRE_EVERY)
            for peer in self._resources.book.expire():
                self._resources.table.forget_offer(peer)


async def _cancel_at_change(latest: Latest[Any], seen: int, scope: trio.CancelScope) -> None:
    await latest.changed(seen)
    scope.cancel()
