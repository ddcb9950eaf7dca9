"""The real NetworkManager over hosts of memory, on virtual time; and over real ones for a crash inside libp2p."""

import socket
from functools import partial
from random import Random

import attrs
import pytest
import trio
import trio.testing
from support.memory_hosts import address_of, identity_of, open_internet

from meshnode.config.schema import NetworkConfig, NodeConfig
from meshnode.errors import PeerUnreachable
from meshnode.inference.privacy import Privacy, may_see
from meshnode.network import host as host_module
from meshnode.network.address_book import open_address_book
from meshnode.network.manager import DialRequest
from meshnode.node.channels import Channels
from meshnode.node.network import Mesh
from meshnode.observe.metrics import Metrics
from meshnode.store.memory import MemoryStore
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, Criticality, Pulse, RestartPolicy, Status
from meshnode.supervise.supervisor import Supervisor
from meshnode.types.evidence import Misdeed
from meshnode.types.peers import Liveness, Offering
from meshnode.wire.control_messages import TicketRequest


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


def connected(member):
    return {info.peer for info in member.resources.table.peers() if info.connected}


async def test_nodes_that_know_one_come_to_know_all(autojump_clock):
    async with open_internet() as net:
        first = await net.start(1)
        others = [await net.start(number, bootstrap=(1,)) for number in range(2, 7)]
        await trio.sleep(30)
        everybody = {member.own for member in (first, *others)}
        for member in (first, *others):
            assert connected(member) == everybody - {member.own}
            assert {info.peer for info in member.resources.table.peers() if info.offer} == everybody - {member.own}


async def test_what_a_node_offers_is_told_when_it_changes_and_renewed_before_it_is_too_old(autojump_clock):
    async with open_internet() as net:
        here, there = await net.start(1), await net.start(2, bootstrap=(1,))
        await trio.sleep(30)

        def heard():
            return there.row(here.own).offer

        first = heard()
        await trio.sleep(300)
        assert heard() is first  # nothing changed, nothing was said
        here.resources.offering.set(Offering(sessions=3))
        await trio.sleep(10)
        assert heard().sessions == 3
        sequence = heard().sequence
        await trio.sleep(3600)
        assert 4 <= heard().sequence - sequence <= 10_000_000
        assert heard().issued > trio.current_time() - 700
        assert there.row(here.own).liveness is Liveness.ALIVE


async def test_many_changes_are_told_at_a_pace(autojump_clock):
    async with open_internet() as net:
        here, there = await net.start(1), await net.start(2, bootstrap=(1,))
        await trio.sleep(30)
        seen = set()
        for sessions in range(200):
            here.resources.offering.set(Offering(sessions=sessions))
            seen.add(there.row(here.own).offer.sequence)
            await trio.sleep(0.05)
        assert len(seen) <= 13
        await trio.sleep(3)
        assert there.row(here.own).offer.sessions == 199


async def test_who_was_reached_once_is_found_again_without_being_named(autojump_clock):
    async with open_internet() as net:
        store = MemoryStore()
        await net.start(1)
        async with trio.open_nursery() as life:
            before = await net.member(2, bootstrap=(1,), store=store)
            await life.start(before.build().run)
            await trio.sleep(10)
            assert connected(before) == {identity_of(1).peer}
            life.cancel_scope.cancel()
        after = await net.start(2, store=store)
        await trio.sleep(10)
        assert connected(after) == {identity_of(1).peer}


async def test_one_who_is_away_is_tried_less_and_less_often_and_linked_when_it_is_back(autojump_clock):
    async with open_internet() as net:
        here = await net.start(1, bootstrap=(2,))
        await trio.sleep(3600)
        tries = [whom for _, whom, _ in net.dialled]
        assert 50 <= len(tries) <= 120
        await net.start(2)
        await trio.sleep(90)
        assert connected(here) == {identity_of(2).peer}


async def test_a_dial_that_hangs_keeps_no_other_waiting(autojump_clock):
    async with open_internet() as net:
        net.silent.update(identity_of(number).peer for number in range(10, 15))
        await net.start(3)
        here = await net.start(1, bootstrap=(*range(10, 15), 3))
        await trio.sleep(10)
        assert connected(here) == {identity_of(3).peer}
        await net.start(4, bootstrap=(3,))
        await trio.sleep(30)
        assert connected(here) == {identity_of(3).peer, identity_of(4).peer}


async def test_no_more_are_linked_than_allowed_and_those_who_were_named_come_first(autojump_clock):
    async with open_internet() as net:
        for number in range(2, 9):
            await net.start(number, bootstrap=(2,))
        await trio.sleep(30)
        few = await net.start(1, bootstrap=(2, 5), max_peers=3)
        await trio.sleep(120)
        assert len(connected(few)) == 3
        assert {identity_of(2).peer, identity_of(5).peer} <= connected(few)
        assert len([info for info in few.resources.table.peers() if info.offer]) >= 6  # gossip tells of the others


async def test_a_node_dials_neither_itself_nor_who_is_banned(autojump_clock):
    async with open_internet() as net:
        here = await net.member(1, bootstrap=(1, 2))
        here.resources.table.failures.set({identity_of(2).peer: 100})
        await net.nursery.start(here.build().run)
        await net.start(2)
        await trio.sleep(100)
        assert net.dialled == []


async def test_who_becomes_banned_is_parted_with(autojump_clock):
    async with open_internet() as net:
        here, there = await net.start(1), await net.start(2, bootstrap=(1,))
        other = await net.start(3, bootstrap=(1,))
        await trio.sleep(30)
        here.resources.table.failures.set({there.own: 100, other.own: 1})
        await trio.sleep(5)
        assert connected(here) == {other.own}
        assert connected(there) == {other.own}
        assert here.parted == {there.own}


async def test_a_wish_to_be_connected_is_answered(autojump_clock):
    async with open_internet() as net:
        here, there = await net.start(1), await net.start(2)
        with pytest.raises(PeerUnreachable, match="does not answer"):
            await here.resources.dials.ask(DialRequest((address_of(3),)))
        assert await here.resources.dials.ask(DialRequest((address_of(2),))) == there.own
        assert connected(here) == {there.own}


async def test_what_is_announced_comes_first_among_the_addresses(autojump_clock):
    async with open_internet() as net:
        outside = f"/ip4/198.51.100.1/tcp/7/p2p/{identity_of(1).peer}"
        here, there = await net.start(1, announce=(outside,)), await net.start(2, bootstrap=(1,))
        await trio.sleep(30)
        assert here.resources.listening.value == (outside, address_of(1))
        assert there.row(here.own).offer.addresses == (outside, address_of(1))


async def test_what_breaks_the_protocol_on_a_link_is_reported(autojump_clock):
    async with open_internet() as net:
        here, there = await net.start(1), await net.start(2, bootstrap=(1,))
        await trio.sleep(10)
        (stream,) = [each for each in net.hosts[there.own].streams if each.peer == here.own]
        await stream.send_all(b"\xff" * 64)
        with trio.fail_after(10), here.resources.evidence.serve() as letters:
            held = (await anext(letters)).question
        assert (held.peer, held.misdeed) == (there.own, Misdeed.MALFORMED)


# Crashes


def supervisor(*specs):
    return Supervisor(specs, health=HealthBoard(), rng=Random(1))


def spec(build):
    return ChildSpec("NetworkManager", build, Criticality.CRITICAL, RestartPolicy(max_restarts=5, period=120.0))


async def test_a_crash_of_the_host_restarts_the_network_and_not_the_node(autojump_clock):
    async with open_internet() as net:
        there = await net.start(2)
        here = await net.member(1, bootstrap=(2,))
        tree = supervisor(spec(here.build))
        await net.nursery.start(tree.run)
        await trio.sleep(10)
        book, listening = here.resources.book.records(), here.resources.listening.value
        for crashes in range(1, 4):
            here.crash.set()
            await trio.sleep(0.01)
            assert here.resources.listening.value == ()
            await trio.sleep(20)
            (state,) = tree.states()
            assert (state.status, state.restarts) == (Status.RUNNING, crashes)
            assert "ZeroDivisionError" in state.last_error
            assert connected(here) == {there.own}
            assert connected(there) == {here.own}
        assert here.resources.listening.value == listening
        assert len(here.resources.book.records()) == len(book)
        tree.request_stop()


async def test_a_network_that_crashes_all_the_time_ends_the_node_with_a_reason(autojump_clock):
    async with open_internet() as net:
        here = await net.member(1)

        async def crash_at_once():
            while True:
                await trio.sleep(0.1)
                here.crash.set()

        tree = supervisor(spec(here.build))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash_at_once)
            with pytest.raises(Exception, match="NetworkManager"):
                await tree.run()
            nursery.cancel_scope.cancel()


async def real_mesh(number, **settings):
    config = NodeConfig(network=NetworkConfig(port=0, network_id="real", **{"host": "127.0.0.1", **settings}))
    book = await open_address_book(MemoryStore(), "real")
    return Mesh(identity_of(number), config, Channels(), book, HealthBoard(), Metrics())


@pytest.mark.processes
async def test_a_crash_inside_libp2p_restarts_the_network_and_not_the_node(monkeypatch):
    hosts = []
    open_host = host_module.open_host

    def opening(*arguments, **named):
        class Noting:
            async def __aenter__(self):
                self.inner = open_host(*arguments, **named)
                hosts.append(await self.inner.__aenter__())
                return hosts[-1]

            async def __aexit__(self, *exc):
                return await self.inner.__aexit__(*exc)

        return Noting()

    monkeypatch.setattr(host_module, "open_host", opening)

    async def crash():
        raise ZeroDivisionError("inside libp2p")

    def tree_of(member):
        builders = member.builders()
        return supervisor(
            spec(partial(builders.manager, Pulse())),
            ChildSpec("MessageDispatcher", partial(builders.dispatcher, Pulse())),
        )

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            there = await real_mesh(2)
            await nursery.start(tree_of(there).run)
            here = await real_mesh(1, bootstrap=there.listen_addresses())
            tree = tree_of(here)
            await nursery.start(tree.run)

            async def linked():
                while not (info := here.table.peer(there.peer)) or not info.connected or not info.offer:  # noqa: ASYNC110
                    await trio.sleep(0.02)

            await linked()
            links = here.table.peer(there.peer).links
            hosts[-1]._connections.swarm.manager.run_task(crash)
            while here.table.peer(there.peer).links == links or not tree.states()[0].restarts:  # noqa: ASYNC110
                await trio.sleep(0.02)
            await linked()
            state, dispatcher = tree.states()
            assert (state.status, state.restarts, dispatcher.restarts) == (Status.RUNNING, 1, 0)
            assert "inside libp2p" in state.last_error
            nursery.cancel_scope.cancel()


@pytest.mark.processes
async def test_tickets_name_the_ports_that_are_set_and_what_is_announced():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (one, other)]
    outside = f"/ip4/198.51.100.1/tcp/7/p2p/{identity_of(1).peer}"
    here = await real_mesh(1, data_port=ports[0], bulk_port=ports[1], announce=(outside,))
    here = attrs.evolve(here, shelf=object())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(here.builders().manager(Pulse()).run)
            plane = here.gateway._current
            tickets = [plane.grant(identity_of(2).peer, TicketRequest(name)) for name in ("activations", "bulk")]
            assert [ticket.port for ticket in tickets] == ports
            assert tickets[0].hosts == ("127.0.0.1", "198.51.100.1")
            nursery.cancel_scope.cancel()


@pytest.mark.processes
async def test_a_peer_on_the_local_network_may_see_what_only_pool_and_lan_may():
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            there = await real_mesh(2)
            for build in (there.builders().manager, there.builders().dispatcher):
                await nursery.start(build(Pulse()).run)
            here = await real_mesh(1, bootstrap=there.listen_addresses())
            for build in (here.builders().manager, here.builders().dispatcher):
                await nursery.start(build(Pulse()).run)
            for one, other in ((here, there), (there, here)):
                while not (info := one.table.peer(other.peer)) or not info.connected:  # noqa: ASYNC110
                    await trio.sleep(0.02)
                assert may_see(info, Privacy.POOL_AND_LAN)
                assert not may_see(info, Privacy.THIS_NODE_ONLY)
            nursery.cancel_scope.cancel()
