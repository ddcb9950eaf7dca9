"""The first words on a link, in memory and on virtual time."""

import pytest
import trio
import trio.testing
from support.link_pairs import RawEnd, make_link

from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerRefused, PeerUnreachable, VersionMismatch
from meshnode.network.greetings import Greeter
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Hello, Ping
from meshnode.wire.stage_messages import Probe
from meshnode.wire.versions import Feature, network_proof


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


HERE, THERE = PeerId("here"), PeerId("there")


def greeter(own, network="home", **options):
    return Greeter(own, network, "0.1.0", lambda: 1000.0, **options)


async def both(left, right):
    """Greet from both sides and return what each has of it: terms or an error."""
    here, there = trio.testing.memory_stream_pair()
    outcome = {}

    async def greet(greeter, link):
        try:
            outcome[greeter.own] = await greeter.greet(link)
        except MeshnodeError as error:
            outcome[greeter.own] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet, left, make_link(here, opened=True, terms=None))
        nursery.start_soon(greet, right, make_link(there, opened=False, terms=None))
    return outcome[HERE], outcome[THERE]


async def test_two_nodes_of_a_network_agree(autojump_clock):
    ours, theirs = await both(greeter(HERE), greeter(THERE, features=Feature.DELEGATION))
    assert ours.features == theirs.features == Feature.DELEGATION


async def test_nodes_of_different_networks_refuse_each_other(autojump_clock):
    ours, theirs = await both(greeter(HERE), greeter(THERE, "work"))
    assert isinstance(ours, PeerRefused)
    assert isinstance(theirs, PeerRefused)


async def one_sided(say):
    """Greet a peer that the test speaks for; return the error and what the peer was told."""
    here, there = trio.testing.memory_stream_pair()
    raw = RawEnd(there)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, raw)
        with pytest.raises(MeshnodeError) as caught:
            await greeter(HERE).greet(make_link(here, terms=None))
    return caught.value, [envelope.message for envelope in await raw.read_to_the_end()]


async def test_a_peer_without_a_common_version_hears_why_it_is_refused(autojump_clock):
    async def say(raw):
        await raw.send(Hello(8, 9, 0, network_proof("home", THERE), "4.0", 0.0))

    error, told = await one_sided(say)
    assert isinstance(error, VersionMismatch)
    assert told[-1].code == "version_mismatch"
    assert "4.0" in told[-1].message


async def test_a_peer_that_says_nothing_is_given_up(autojump_clock):
    async def say(raw):
        await trio.lowlevel.checkpoint()

    begun = trio.current_time()
    error, _ = await one_sided(say)
    assert isinstance(error, PeerUnreachable)
    assert trio.current_time() - begun == 5


async def test_a_peer_that_hangs_up_is_unreachable(autojump_clock):
    async def say(raw):
        await raw.stream.aclose()

    error, _ = await one_sided(say)
    assert isinstance(error, PeerUnreachable)


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00" * 40, b"\xff" * 40])
async def test_a_peer_that_says_something_else_has_misbehaved(data, autojump_clock):
    async def say(raw):
        await raw.stream.send_all(data)

    error, _ = await one_sided(say)
    assert isinstance(error, PeerMisbehaved)


async def test_a_peer_that_begins_with_another_message_has_misbehaved(autojump_clock):
    async def say(raw):
        await raw.send(Ping(1))

    error, _ = await one_sided(say)
    assert isinstance(error, PeerMisbehaved)
    assert "Ping" in str(error)


async def test_messages_that_come_together_with_the_hello_are_not_lost(autojump_clock):
    here, there = trio.testing.memory_stream_pair()
    raw, link = RawEnd(there), make_link(here, terms=None)
    await raw.send(Hello(1, 1, 7, network_proof("home", THERE), "0.1.0", 0.0))
    await raw.send(Ping(5))
    got = trio.Event()

    async def deliver(inbound):
        got.set()

    await raw.send(Probe())
    await greeter(HERE).greet(link)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run, deliver)
        await got.wait()
        nursery.cancel_scope.cancel()
