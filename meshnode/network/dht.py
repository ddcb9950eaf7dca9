"""The distributed hash table: what a node provides can be found by asking nearer and nearer nodes.

Each network has a table of its own: its name is in the protocol and in every point. Records name whoever put them there, as the
connection proved it, so nobody is announced by others. libp2p's own table was left alone: it speaks on the public network's
protocol whatever prefix it is given, needs its host's dialler, and stays empty until it is told to look around.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import attrs
import msgspec
import structlog
import trio

from meshnode.errors import PeerError, PeerMisbehaved
from meshnode.network.kademlia import BUCKET, Contact, ProviderBook, RoutingTable, checked_contact, distance, point_of
from meshnode.network.ports import PeerStream
from meshnode.network.short_messages import ask, receive_message, send_message
from meshnode.types.ids import PeerId, short

__all__ = ["Dht", "Reach"]

_AT_ONCE = 3  # questions of one look-up
_PATIENCE = 5.0  # seconds for one node to be reached and to answer
_LOOKUP = 60.0  # seconds for all of them
_RENEW = 600.0  # seconds between two announcements of the same
_PACE = 0.5  # seconds between two keys that are renewed
_SILENCE = 30.0  # seconds that a stream without questions stays open
_POINT = 32  # bytes
_MAX_PROVIDED = 512

_log = structlog.get_logger(__name__)


class Reach(Protocol):
    """How the table comes to other nodes."""

    def connections(self) -> Collection[PeerId]:
        """Return whom we are connected to."""
        ...

    def members(self) -> Collection[PeerId]:
        """Return those of them who belong to our network."""
        ...

    async def connect(self, addresses: Sequence[str]) -> PeerId:
        """Connect to the peer that the addresses name. Raises PeerError."""
        ...

    async def open_stream(self, peer: PeerId, protocol: str) -> PeerStream:
        """Open a stream to a connected peer. Raises PeerUnreachable."""
        ...


class Said(msgspec.Struct, frozen=True, array_like=True):
    """A node as another one knows it."""

    peer: str
    addresses: tuple[str, ...]


class Find(msgspec.Struct, frozen=True, tag="find"):
    """Ask who is nearest to a point, and who provides what is there."""

    point: bytes
    addresses: tuple[str, ...]  # where the asker is reached


class Provide(msgspec.Struct, frozen=True, tag="provide"):
    """Whoever sends this provides what is at a point."""

    point: bytes
    addresses: tuple[str, ...]


class Found(msgspec.Struct, frozen=True):
    """The answer to both."""

    nearer: tuple[Said, ...] = ()
    providers: tuple[Said, ...] = ()


@attrs.define(eq=False)
class Dht:
    """This node's part of the table, and the way through the others'."""

    _own: PeerId
    _network: str
    _reach: Reach
    _addresses: Callable[[], tuple[str, ...]]
    _table: RoutingTable = attrs.field(init=False)
    _book: ProviderBook = attrs.field(factory=ProviderBook, init=False)
    _provided: set[bytes] = attrs.field(factory=set, init=False)  # keys

    def __attrs_post_init__(self) -> None:
        self._table = RoutingTable(self._network, point_of(self._network, self._own.encode()))

    @property
    def protocol(self) -> str:
        """What the streams that `serve` takes are opened with."""
        return f"/meshnode/{self._network}/dht/1"

    async def run(self) -> None:
        """Look around and renew what we provide, now and then, until cancelled."""
        while True:
            await trio.sleep(_RENEW)
            await self._look_up(self._table.point(self._own))
            for key in tuple(self._provided):
                await self._announce(point_of(self._network, key))
                await trio.sleep(_PACE)

    async def provide(self, key: bytes) -> None:
        """Tell the nodes nearest to `key` that we provide it, and again every ten minutes until `withdraw`."""
        if len(self._provided) >= _MAX_PROVIDED:
            raise ValueError(f"a node can provide {_MAX_PROVIDED} keys")
        self._provided.add(key)
        await self._announce(point_of(self._network, key))

    def withdraw(self, key: bytes) -> None:
        """Stop renewing; what was said is forgotten within half an hour."""
        self._provided.discard(key)

    async def find_providers(self, key: bytes, limit: int = BUCKET) -> tuple[tuple[PeerId, tuple[str, ...]], ...]:
        """Return up to `limit` other nodes that said they provide `key`, with their addresses. Hints: any may be wrong."""
        point = point_of(self._network, key)
        found = {contact.peer: contact for contact in self._book.of(point, trio.current_time())}
        if len(found) < limit:
            _, others = await self._look_up(point, limit)
            found = others | found
        found.pop(self._own, None)
        return tuple((contact.peer, contact.addresses) for contact in list(found.values())[:limit])

    async def serve(self, stream: PeerStream) -> None:
        """Answer the questions of a peer until it has no more."""
        with trio.move_on_after(_SILENCE) as silence:
            while True:
                question = await receive_message(stream, Find | Provide)  # type: ignore[arg-type]  # a union is no type
                if len(question.point) != _POINT:
                    raise PeerMisbehaved(f"{short(stream.peer)} asks for a point of {len(question.point)} bytes")
                await send_message(stream, self._answer(stream.peer, question))
                silence.deadline = trio.current_time() + _SILENCE

    def _answer(self, peer: PeerId, question: Find | Provide) -> Found:
        now = trio.current_time()
        asker = checked_contact(peer, question.addresses)
        if asker is not None:
            self._table.seen(asker)
            if isinstance(question, Provide):
                self._book.add(question.point, asker, now)
                return Found()
        nearer = [each for each in self._table.closest(question.point, BUCKET + 1) if each.peer != peer][:BUCKET]
        return Found(_said(nearer), _said(self._book.of(question.point, now)[:BUCKET]))

    async def _announce(self, point: bytes) -> None:
        nearest, _ = await self._look_up(point)
        message = Provide(point, self._addresses())
        ours = Contact(self._own, message.addresses)
        if len(nearest) < BUCKET or distance(point, self._table.point(self._own)) < distance(
            point, self._table.point(nearest[-1].peer)
        ):
            self._book.add(point, ours, trio.current_time())  # we are among the nearest ourselves
        async with trio.open_nursery() as nursery:
            for contact in nearest:
                nursery.start_soon(self._question, contact, message)

    async def _look_up(self, point: bytes, enough: int = 1 << 30) -> tuple[list[Contact], dict[PeerId, Contact]]:
        """Ask nearer and nearer nodes; return the nearest that answered, and the providers that they named."""
        lookup = _LookUp(self._table, point, enough)
        lookup.heard_of(self._table.closest(point))
        lookup.heard_of(
            [Contact(peer, ()) for peer in self._reach.members()]
        )  # a stranger would learn our protocol's name
        lookup.asked.add(self._own)
        question = Find(point, self._addresses())

        async def work() -> None:
            while True:
                contact = lookup.next()
                if contact is None:
                    if not lookup.busy:
                        return
                    await lookup.changed.wait()
                    continue
                lookup.busy += 1
                answer = await self._question(contact, question)
                lookup.busy -= 1
                lookup.note(contact, answer)

        with trio.move_on_after(_LOOKUP):
            async with trio.open_nursery() as nursery:
                for _ in range(_AT_ONCE):
                    nursery.start_soon(work)
        return lookup.nearest(), lookup.providers

    async def _question(self, contact: Contact, question: Find | Provide) -> Found | None:
        """Ask one node; None when it cannot be reached or does not speak our language."""
        try:
            with trio.fail_after(_PATIENCE):
                if contact.peer not in self._reach.connections():
                    await self._reach.connect(contact.addresses)
                stream = await self._reach.open_stream(contact.peer, self.protocol)
                try:
                    answer = await ask(stream, question, Found, _PATIENCE)
                finally:
                    await stream.aclose()
        except (PeerError, trio.TooSlowError) as error:
            _log.debug("node of the table lost", peer=short(contact.peer), error=str(error))
            self._table.failed(contact.peer)
            return None
        if contact.addresses:
            self._table.seen(contact)
        return answer


@attrs.define(eq=False)
class _LookUp:
    """The state of one search."""

    table: RoutingTable
    point: bytes
    enough: int  # providers
    known: dict[PeerId, Contact] = attrs.field(factory=dict, init=False)
    asked: set[PeerId] = attrs.field(factory=set, init=False)
    answered: set[PeerId] = attrs.field(factory=set, init=False)
    failed: set[PeerId] = attrs.field(factory=set, init=False)
    providers: dict[PeerId, Contact] = attrs.field(factory=dict, init=False)
    busy: int = attrs.field(default=0, init=False)
    changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def heard_of(self, contacts: Sequence[Contact]) -> None:
        """Take in nodes that may be asked."""
        for contact in contacts:
            if contact.peer not in self.known or not self.known[contact.peer].addresses:
                self.known[contact.peer] = contact

    def next(self) -> Contact | None:
        """Return the nearest node not asked yet, if it is among the nearest at all."""
        if len(self.providers) >= self.enough:
            return None
        for contact in self._nearest([peer for peer in self.known if peer not in self.failed]):
            if contact.peer not in self.asked:
                self.asked.add(contact.peer)
                return contact
        return None

    def note(self, contact: Contact, answer: Found | None) -> None:
        """Take in what a node said."""
        if answer is None:
            self.failed.add(contact.peer)
        else:
            self.answered.add(contact.peer)
            self.heard_of(_checked(answer.nearer))
            for provider in _checked(answer.providers):
                self.providers.setdefault(provider.peer, provider)
        self.changed.set()
        self.changed = trio.Event()

    def nearest(self) -> list[Contact]:
        """Return the nearest nodes that answered."""
        return self._nearest(self.answered)

    def _nearest(self, peers: Collection[PeerId]) -> list[Contact]:
        ordered = sorted(peers, key=lambda peer: distance(self.point, self.table.point(peer)))
        return [self.known[peer] for peer in ordered[:BUCKET]]


def _said(contacts: Sequence[Contact]) -> tuple[Said, ...]:
    return tuple(Said(contact.peer, contact.addresses) for contact in contacts)


def _checked(said: Sequence[Said]) -> list[Contact]:
    return [contact for each in said[:BUCKET] if (contact := checked_contact(each.peer, each.addresses)) is not None]
