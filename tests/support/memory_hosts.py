"""Real NetworkManagers over hosts made of memory: who reaches whom is the test's to say."""

from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio
import trio.testing

from meshnode.crypto.identity import Identity
from meshnode.errors import PeerRefused, PeerUnreachable
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.network.address_book import open_address_book
from meshnode.network.dialing import peer_of
from meshnode.network.gateway import StageGateway
from meshnode.network.gossip import GossipBook
from meshnode.network.loopback import LoopbackLink
from meshnode.network.manager import NetworkManager, NetworkResources, NetworkSettings
from meshnode.network.peers import PeerTable
from meshnode.store.memory import MemoryStore
from meshnode.supervise.subsystem import Pulse
from meshnode.types.peers import Offering

__all__ = ["Internet", "MemoryMember", "address_of", "identity_of", "open_internet"]


def address_of(number):
    return f"/ip4/192.0.2.{number}/tcp/1/p2p/{identity_of(number).peer}"


def identity_of(number):
    return Identity(number.to_bytes(32, "big"))


@attrs.define(eq=False)
class _Stream:
    inner: object
    peer: str
    is_relayed: bool
    is_lan: bool = False

    async def send_all(self, data):
        await self.inner.send_all(data)

    async def receive_some(self, max_bytes=None):
        return await self.inner.receive_some(max_bytes)

    async def aclose(self):
        await self.inner.aclose()


@attrs.define(eq=False)
class MemoryHost:
    internet: "Internet"
    peer: str
    addresses: tuple
    handlers: dict
    nursery: trio.Nursery
    streams: list = attrs.field(factory=list)
    places: set = attrs.field(factory=set)
    vouched: set = attrs.field(factory=set)

    def listen_addresses(self):
        through = [
            f"{address}/p2p-circuit/p2p/{self.peer}"
            for relay in self.places
            if relay in self.internet.hosts
            for address in self.internet.hosts[relay].addresses
        ]
        return (*self.addresses, *through)

    def vouch(self, peer):
        self.vouched.add(peer)

    def members(self):
        return self.vouched & {stream.peer for stream in self.streams}

    def relays(self):
        return {relay for relay in self.places if relay in self.internet.hosts}

    async def connect(self, addresses):
        await trio.sleep(0.01)
        peer = peer_of(addresses)
        self.internet.dialled.append((self.peer, peer, tuple(addresses)))
        if peer in self.internet.silent:
            await trio.sleep_forever()
        if self._way(peer, addresses) is None:
            raise PeerUnreachable(f"{peer} does not answer")
        return peer

    def _way(self, peer, addresses):
        """Return whether it leads through a relay; None: there is no way."""
        other = self.internet.hosts.get(peer)
        if other is None:
            return None
        if any("circuit" not in each for each in addresses) and not self.internet.is_cut(self.peer, peer):
            return False
        relays = [self.internet.hosts[relay] for relay in other.relays()]
        usable = [each for each in relays if not self.internet.is_cut(self.peer, each.peer)]
        return True if usable and any("circuit" in each for each in addresses) else None

    async def open_stream(self, peer, protocol):
        await trio.sleep(0.01)
        other = self.internet.hosts.get(peer)
        if other is None:
            raise PeerUnreachable(f"{peer} does not answer")
        is_relayed = self.internet.is_cut(self.peer, peer)
        near, far = trio.testing.memory_stream_pair()
        ours, theirs = _Stream(near, peer, is_relayed), _Stream(far, self.peer, is_relayed)
        self.streams.append(ours)
        other.streams.append(theirs)
        other.nursery.start_soon(other.handlers[protocol], theirs)
        return ours

    async def reserve_relay(self, peer):
        await trio.sleep(0.01)
        self.internet.asked.append((self.peer, peer))
        if peer not in self.internet.relaying:
            raise PeerRefused(f"{peer} does not relay")
        self.places.add(peer)
        return self.listen_addresses()[-1]

    async def provide(self, key):
        await trio.sleep(0.01)
        self.internet.provided.append((trio.current_time(), self.peer, key))
        self.internet.records.setdefault(key, {})[self.peer] = self.addresses

    def withdraw(self, key):
        self.internet.records.get(key, {}).pop(self.peer, None)

    async def find_providers(self, key, limit=20):
        await trio.sleep(0.01)
        self.internet.sought.append((trio.current_time(), self.peer, key))
        return tuple((peer, found) for peer, found in self.internet.records.get(key, {}).items() if peer != self.peer)

    async def disconnect(self, peer):
        await trio.lowlevel.checkpoint()


class _Plane:
    """No stage links."""

    def __init__(self, member, links, host):
        self.member = member

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        await trio.sleep_forever()

    async def accept_stream(self, stream):
        raise NotImplementedError

    def found_direct_way(self, peer):
        self.member.direct_ways.append(peer)

    def part_with(self, peer):
        self.member.parted.add(peer)

    def grant(self, peer, request):
        raise PeerRefused("there are no stage links here")


@attrs.define(eq=False)
class MemoryMember:
    """What outlives the incarnations of one node's network."""

    resources: NetworkResources
    settings: NetworkSettings
    open_host: object
    direct_ways: list = attrs.field(factory=list)
    parted: set = attrs.field(factory=set)
    crash: trio.Event = attrs.field(factory=trio.Event)

    @property
    def own(self):
        return self.resources.own

    def build(self):
        return NetworkManager(self.resources, self.settings, self.open_host, partial(_Plane, self), Pulse())

    def row(self, peer):
        return self.resources.table.peer(peer)

    async def dispatch(self):
        """Bring what has come in to the manager, as the MessageDispatcher does."""
        with self.resources.inbound.serve() as letters:
            async for letter in letters:
                await self.resources.control.tell(letter.question)


@attrs.define(eq=False)
class Internet:
    nursery: trio.Nursery
    hosts: dict = attrs.field(factory=dict)
    members: dict = attrs.field(factory=dict)
    cuts: set = attrs.field(factory=set)
    relaying: set = attrs.field(factory=set)
    silent: set = attrs.field(factory=set)  # whoever dials them waits for ever
    dialled: list = attrs.field(factory=list)  # (who, whom, where)
    asked: list = attrs.field(factory=list)  # for a place: (who, whom)
    records: dict = attrs.field(factory=dict)
    provided: list = attrs.field(factory=list)  # (when, who, key)
    sought: list = attrs.field(factory=list)  # (when, who, key)

    def is_cut(self, one, other):
        return frozenset((one, other)) in self.cuts

    def cut(self, one, other):
        self.cuts.add(frozenset((one.own, other.own)))

    async def member(
        self, number, *, bootstrap=(), clock=trio.current_time, store=None, holdings=None, shares=True, **options
    ):
        """Make a node; `number` is its identity and its address."""
        identity = identity_of(number)
        table = PeerTable(identity.peer, Latest({}))
        resources = NetworkResources(
            own=identity.peer,
            table=table,
            book=GossipBook(identity, "network", clock),
            addresses=await open_address_book(store or MemoryStore(), "network"),
            gateway=StageGateway(LoopbackLink(identity.peer, Mailbox("stages", 64))),
            inbound=Mailbox("dispatcher", 256),
            control=Mailbox("manager", 64),
            dials=Mailbox("dials", 0),
            evidence=Mailbox("evidence", 64),
            offering=Latest(Offering()),
            listening=Latest(()),
            holdings=holdings,
            shares=shares,
        )
        defaults = {"network_id": "network", "announce": (), "max_peers": 64, "node": f"node {number}"}
        settings = NetworkSettings(bootstrap=tuple(map(address_of, bootstrap)), **{**defaults, **options})
        member = MemoryMember(resources, settings, None)
        member.open_host = partial(self.open_host, member, (address_of(number),))
        self.members[number] = member
        self.nursery.start_soon(member.dispatch)
        return member

    async def start(self, number, **options):
        member = await self.member(number, **options)
        await self.nursery.start(member.build().run)
        return member

    @asynccontextmanager
    async def open_host(self, member, addresses, handlers):
        member.crash = trio.Event()
        async with trio.open_nursery() as nursery:
            host = self.hosts[member.own] = MemoryHost(self, member.own, addresses, handlers, nursery)
            nursery.start_soon(_crash_at, member.crash)
            try:
                yield host
            finally:
                del self.hosts[member.own]
                for stream in host.streams:
                    await trio.aclose_forcefully(stream)
                nursery.cancel_scope.cancel()


async def _crash_at(event):
    await event.wait()
    raise ZeroDivisionError("inside libp2p")


@asynccontextmanager
async def open_internet():
    """Yield the place where nodes meet; all end with it."""
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            yield Internet(nursery)
            nursery.cancel_scope.cancel()
