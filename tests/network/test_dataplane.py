"""Data planes on real loopback sockets."""

import socket
import ssl
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from msgspec.structs import replace
from support.link_pairs import answer_probes

from meshnode.crypto.tls import dialler_context
from meshnode.errors import ConfigError, PeerMisbehaved, PeerRefused, PeerUnreachable
from meshnode.network.certificates import make_credentials
from meshnode.network.dataplane import DataPlane, DataPlanePorts, DataPlaneSettings
from meshnode.network.direct import dial
from meshnode.network.greetings import Greeter
from meshnode.types.ids import PeerId, SessionId
from meshnode.wire.control_messages import TicketRequest
from meshnode.wire.stage_messages import Probe, ProbeReply, StageStepMessage

pytestmark = pytest.mark.processes

A, B = PeerId("12D3a"), PeerId("12D3b")
LOOPBACK = ("127.0.0.1",)


@attrs.define(eq=False)
class HostStream:
    """A stream of the libp2p host, as the data plane sees it."""

    stream: trio.abc.Stream
    peer: PeerId
    is_relayed: bool = True

    async def send_all(self, data):
        await self.stream.send_all(data)

    async def receive_some(self, max_bytes=None):
        return await self.stream.receive_some(max_bytes)

    async def aclose(self):
        await self.stream.aclose()


@attrs.define(eq=False)
class Pair:
    """Two planes whose control links always work."""

    nursery: trio.Nursery
    planes: dict = attrs.field(factory=dict)
    hosts: dict = attrs.field(factory=lambda: {A: LOOPBACK, B: LOOPBACK})  # what each says of its addresses
    reports: dict = attrs.field(factory=lambda: {A: [], B: []})
    deliver: object = answer_probes
    reached: list = attrs.field(factory=list)
    tickets: int = 0
    streams: int = 0
    change_ticket: object = staticmethod(lambda ticket: ticket)
    host_works: bool = True

    async def reach(self, peer):
        await trio.lowlevel.checkpoint()
        self.reached.append(peer)

    def add(self, own, network="home", **settings):
        async def ask_ticket(peer, request):
            await trio.lowlevel.checkpoint()
            self.tickets += 1
            return self.change_ticket(self.planes[peer].grant(own, request))

        async def open_stream(peer, protocol):
            await trio.lowlevel.checkpoint()
            if not self.host_works:
                raise PeerUnreachable("the host does not get there either")
            self.streams += 1
            here, there = trio.testing.memory_stream_pair()
            self.nursery.start_soon(self.planes[peer].accept_stream, HostStream(there, own))
            return HostStream(here, peer)

        async def deliver(received):
            await self.deliver(received)

        ports = DataPlanePorts(
            self.reach, ask_ticket, open_stream, deliver, lambda: self.hosts[own],
            lambda peer, error: self.reports[own].append((peer, error)),
        )  # fmt: skip
        settings = {"listen": LOOPBACK, **settings}
        self.planes[own] = DataPlane(Greeter(own, network), ports, DataPlaneSettings(**settings))
        return self.planes[own]


@asynccontextmanager
async def pair(network_of_b="home", **settings):
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            both = Pair(nursery)
            for own, network in ((A, "home"), (B, network_of_b)):
                await nursery.start(both.add(own, network, **settings).run)
            yield both
            nursery.cancel_scope.cancel()


async def works(link):
    return (await link.ask(Probe(), timeout=5)).message == ProbeReply()


async def until(condition):
    while not condition():  # noqa: ASYNC110  # over real sockets there is no event for it
        await trio.sleep(0.01)


async def reported(both, own):
    await until(lambda: both.reports[own])
    return both.reports[own][0]


# Direct links


async def test_a_direct_link_is_opened_once_and_shared():
    async with pair() as both:
        plane = both.planes[A]
        links = []

        async def ask():
            links.append(await plane.to(B))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
        assert len(set(map(id, links))) == 1
        assert plane.existing(B) is await plane.to(B) is links[0]
        assert (both.tickets, both.streams) == (1, 0)
        assert not both.planes[B].way.is_taken
        assert await works(links[0])
        assert not links[0].is_relayed
        assert all(plane.way.is_taken for plane in both.planes.values())


async def test_each_direction_has_a_link_of_its_own():
    async with pair() as both:
        links = [await both.planes[A].to(B), await both.planes[B].to(A)]
        assert len(set(map(id, links))) == 2
        for link in links:
            assert await works(link)


async def test_large_bodies_come_through_unchanged():
    got = []

    async def deliver(received):
        got.append(received.body)

    async with pair() as both:
        both.deliver = deliver
        link = await both.planes[A].to(B)
        bodies = [bytes([size % 251]) * size for size in (0, 1, 16_384, 65_537, 5_000_000)]
        for body in bodies:
            await link.send(StageStepMessage(SessionId("s"), 1, 0, 1, 0, 1), body)
        await until(lambda: len(got) == len(bodies))
        assert got == bodies


async def test_a_caller_that_gives_up_does_not_end_the_attempt_of_the_others():
    async with pair() as both:
        with trio.CancelScope() as scope:
            scope.cancel()
            await both.planes[A].to(B)
        assert await works(await both.planes[A].to(B))
        assert both.tickets == 1


async def test_a_link_that_ended_is_opened_again():
    async with pair() as both:
        link = await both.planes[A].to(B)
        link.close("a test")
        assert both.planes[A].existing(B) is None
        again = await both.planes[A].to(B)
        assert again is not link
        assert await works(again)


async def test_who_becomes_banned_has_no_link_any_more_and_no_ticket():
    async with pair() as both:
        here, there = both.planes[A], both.planes[B]
        links = [await here.to(B), await there.to(A)]
        for link in links:
            assert await works(link)
        token = here.grant(B, TicketRequest("activations")).token
        here.part_with(B)
        for link in links:
            await link.closed.wait()
        assert await handshake(here, token=token) == b""
        assert both.reached == [B, A]


async def test_links_end_with_the_plane_and_there_are_none_without():
    async with trio.open_nursery() as nursery:
        both = Pair(nursery)
        await nursery.start(both.add(B).run)
        async with trio.open_nursery() as life_of_a:
            plane = both.add(A)
            await life_of_a.start(plane.run)
            link = await plane.to(B)
            life_of_a.cancel_scope.cancel()
        assert link.closed.is_set()
        with pytest.raises(PeerUnreachable, match="is down"):
            await plane.to(B)
        nursery.cancel_scope.cancel()


async def test_a_link_that_nobody_uses_is_closed():
    async with pair(idle=0.5) as both:
        link = await both.planes[A].to(B)
        await link.closed.wait()
        assert "unused" in str(link.ended_by)


async def test_the_first_address_that_is_really_the_peer_is_taken():
    async with pair() as both:
        stranger = both.planes[B]
        await both.nursery.start(both.add(B, port=stranger.port, listen=("127.0.0.2",)).run)
        both.hosts[B] = ("localhost", "127.0.0.1", "127.0.0.3", "127.0.0.2")
        assert await works(await both.planes[A].to(B))
        assert both.streams == 0


# Tickets


async def handshake(plane, *, token=None, certificate=None):
    """Dial as somebody who has what is given; return what the listener says before it hangs up."""
    ticket = plane.grant(A, TicketRequest("activations"))
    if certificate is not None:
        ticket = replace(ticket, certificate=certificate)
    stream = await dial(ticket, dialler_context())
    await stream.send_all(ticket.token if token is None else token)
    try:
        return await stream.receive_some(1000)
    except trio.BrokenResourceError:
        return b""
    finally:
        await trio.aclose_forcefully(stream)


async def test_a_wrong_token_lets_nobody_in():
    async with pair() as both:
        assert await handshake(both.planes[B], token=bytes(32)) == b""
        peer, error = await reported(both, B)
        assert peer is None
        assert isinstance(error, PeerRefused)


async def test_a_token_is_good_once():
    async with pair() as both:
        ticket = both.planes[B].grant(A, TicketRequest("activations"))
        assert await handshake(both.planes[B], token=ticket.token)
        assert await handshake(both.planes[B], token=ticket.token) == b""


async def test_an_expired_token_lets_nobody_in():
    async with pair() as both:
        plane = both.planes[B]
        plane._reception.tickets.lifetime = 0.05
        token = plane.grant(A, TicketRequest("activations")).token
        await trio.sleep(0.1)
        assert await handshake(plane, token=token) == b""


async def test_another_machine_at_the_address_gets_no_token():
    async with pair() as both:
        with pytest.raises(PeerUnreachable, match="certificate is not the one"):
            await handshake(both.planes[B], certificate=make_credentials().fingerprint)


async def test_a_purpose_nobody_knows_gets_no_ticket():
    async with pair() as both:
        with pytest.raises(PeerRefused, match="gossip"):
            both.planes[A].grant(B, TicketRequest("gossip"))


async def test_a_node_without_an_address_gives_no_tickets():
    async with pair() as both:
        both.hosts[A] = ()
        with pytest.raises(PeerRefused, match="no address"):
            both.planes[A].grant(B, TicketRequest("activations"))


async def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with trio.open_nursery() as nursery:
            plane = Pair(nursery).add(A, port=port)
            with pytest.raises(ConfigError, match=str(port)):
                await plane.run()


async def test_nodes_of_different_networks_have_no_link():
    async with pair(network_of_b="work") as both:
        with pytest.raises(PeerUnreachable, match="another network"):
            await both.planes[A].to(B)


# Strangers


async def connect(plane):
    return await trio.open_tcp_stream("127.0.0.1", plane.port)


async def is_hung_up(stream):
    try:
        while await stream.receive_some(1000):
            pass
    except trio.BrokenResourceError:
        pass
    await trio.aclose_forcefully(stream)
    return True


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\xff\xff" + b"a" * 1000])
async def test_what_does_not_speak_tls_is_hung_up_on(data):
    async with pair() as both:
        stream = await connect(both.planes[B])
        await stream.send_all(data)
        await stream.send_eof()
        assert await is_hung_up(stream)
        assert (await reported(both, B))[0] is None
        assert await works(await both.planes[A].to(B))


async def test_old_tls_is_not_spoken():
    async with pair() as both:
        context = dialler_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = await connect(both.planes[B])
        with pytest.raises(trio.BrokenResourceError):
            await trio.SSLStream(stream, context).do_handshake()
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("upto", ["nothing", "half a handshake", "no token", "half a token", "no hello"])
async def test_who_is_slow_is_hung_up_on(upto):
    async with pair(handshake=0.3) as both:
        stream = await connect(both.planes[B])
        if upto == "half a handshake":
            await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
        if "token" in upto or upto == "no hello":
            stream = trio.SSLStream(stream, dialler_context())
            await stream.do_handshake()
            token = both.planes[B].grant(A, TicketRequest("activations")).token
            await stream.send_all({"no token": b"", "half a token": token[:16], "no hello": token}[upto])
        assert await is_hung_up(stream)
        assert await works(await both.planes[A].to(B))


async def test_a_flood_of_connections_does_not_keep_peers_out():
    async with pair(strangers=20) as both:
        port = both.planes[B].port
        slow = await trio.open_tcp_stream("127.0.0.1", port)  # an honest one that needs a while
        flood = [await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.3") for _ in range(300)]
        assert await works(await both.planes[A].to(B))
        slow = trio.SSLStream(slow, dialler_context())
        await slow.do_handshake()
        await trio.aclose_forcefully(slow)
        assert both.streams == 0
        await trio.testing.wait_all_tasks_blocked()
        assert len(both.planes[B]._reception.anteroom) <= 20
        for stream in flood:
            await trio.aclose_forcefully(stream)


async def test_links_of_one_peer_are_bounded_and_the_newest_stays():
    async with pair(inbound_per_peer=3) as both:
        links = []
        for _ in range(5):
            links.append(await both.planes[A].to(B))
            both.planes[A]._current.clear()
            await works(links[-1])
        await links[0].closed.wait()
        await links[1].closed.wait()
        assert await works(links[-1])


async def test_garbage_inside_a_link_ends_it_and_is_held_against_the_peer():
    async with pair() as both:
        link = await both.planes[A].to(B)
        await link.stream.send_all(b"\xff" * 100)
        peer, error = await reported(both, B)
        assert peer == A
        assert isinstance(error, PeerMisbehaved)
        await link.closed.wait()


async def test_a_receiver_that_crashes_ends_its_link_and_no_other():
    async def crash(received):
        raise ZeroDivisionError

    async with pair() as both:
        other = await both.planes[B].to(A)
        link = await both.planes[A].to(B)
        assert await works(other)
        both.deliver = crash
        await link.send(Probe())
        await link.closed.wait()
        both.deliver = answer_probes
        assert await works(other)


# Without a direct way


async def test_without_a_direct_way_the_link_goes_over_the_host():
    async with pair() as both:
        both.hosts[B] = ("127.0.0.2",)
        link = await both.planes[A].to(B)
        assert link.is_relayed
        assert await works(link)
        assert both.streams == 1


async def test_a_certificate_of_somebody_else_leads_to_the_host_too():
    async with pair() as both:
        both.change_ticket = lambda ticket: replace(ticket, certificate=bytes(32))
        assert (await both.planes[A].to(B)).is_relayed


async def test_a_link_over_the_host_is_replaced_by_a_direct_one_and_goes_on_for_those_who_use_it():
    async with pair(first_retry=0.1) as both:
        both.hosts[B] = ("127.0.0.2",)
        relayed = await both.planes[A].to(B)
        await trio.sleep(0.3)
        assert await both.planes[A].to(B) is relayed
        both.hosts[B] = LOOPBACK
        await until(lambda: both.planes[A].existing(B) is not relayed)
        link = await both.planes[A].to(B)
        assert not link.is_relayed
        assert await works(link)
        assert await works(relayed)
        tickets = both.tickets
        await trio.sleep(0.5)
        assert both.tickets == tickets  # and the search is over


async def test_nobody_looks_for_a_better_way_once_the_link_has_ended():
    async with pair(first_retry=0.1) as both:
        both.hosts[B] = ("127.0.0.2",)
        (await both.planes[A].to(B)).close("a test")
        tickets = both.tickets
        await trio.sleep(0.5)
        assert both.tickets == tickets


async def test_a_peer_that_cannot_be_reached_at_all_is_reported_with_both_reasons():
    async with pair() as both:
        both.hosts[B] = ("127.0.0.2",)
        both.host_works = False
        with pytest.raises(PeerUnreachable, match="does not get there either"):
            await both.planes[A].to(B)
        both.hosts[B], both.host_works = LOOPBACK, True
        assert await works(await both.planes[A].to(B))
