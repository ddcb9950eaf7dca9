"""What neighbours are sent: our own word at once, the rest where a heartbeat shows that it is lacking; in small batches, and once."""

import attrs
import msgspec
import pytest
import trio
import trio.testing
from support.memory_hosts import address_of, identity_of

from meshnode.network import gossip, neighbours
from meshnode.network.gossip import GossipBook
from meshnode.network.neighbours import Neighbour
from meshnode.types.peers import Offer
from meshnode.wire.control_messages import Records, SignedRecord
from meshnode.wire.protocols import CONTROL_MESSAGES

NOW = 1_800_000_000.0


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


def book(number=1):
    return GossipBook(identity_of(number), "home", lambda: NOW)


def peer(number):
    return identity_of(number).peer


def offer(number, sequence=1, **more):
    return Offer(peer(number), sequence, NOW, "1", (address_of(number),), **more)


def record(number, sequence=1, **more):
    payload = msgspec.msgpack.encode(offer(number, sequence, **more))
    return SignedRecord(peer(number), payload, identity_of(number).sign("offer:home", payload))


@attrs.define(eq=False)
class Ear:
    """What a neighbour is sent, and when."""

    sent: list = attrs.field(factory=list)

    async def __call__(self, message):
        self.sent.append((trio.current_time(), message))
        await trio.lowlevel.checkpoint()

    def signers(self):
        return [each.signer for _, message in self.sent for each in message.records]


async def test_a_newcomer_gets_the_whole_book_our_own_word_first_in_small_frames(autojump_clock):
    ours, ear = book(), Ear()
    for number in range(2, 60):
        ours.accept(record(number, node="x" * 5000))
    ours.publish(offer(1))
    neighbour = Neighbour(peer(99), ours)
    neighbour.compare(book(99).digest)
    with trio.move_on_after(10):
        await neighbour.feed(ear)
    assert ear.signers()[0] == peer(1)
    assert sorted(ear.signers()) == sorted(peer(number) for number in range(1, 60))
    assert all(len(CONTROL_MESSAGES.to_frame(message, b"", 0)) < 64 << 10 for _, message in ear.sent)


async def test_nothing_is_said_to_who_has_the_same_book_and_news_once_to_who_has_not(autojump_clock):
    ours, theirs, ear = book(1), book(99), Ear()
    neighbour = Neighbour(peer(99), ours)
    for each in (ours, theirs):
        each.accept(record(3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour.feed, ear)
        for _ in range(3):
            neighbour.compare(theirs.digest)
            await trio.sleep(10_000)
        assert ear.signers() == []
        ours.accept(record(2))
        for _ in range(3):
            neighbour.compare(theirs.digest)  # which stays the other one: it may have its reasons
            await trio.sleep(10_000)
        assert ear.signers() == [peer(2)]
        ours.accept(record(4))
        neighbour.compare(None)  # an older version
        await trio.sleep(10_000)
        assert ear.signers() == [peer(2), peer(4)]
        nursery.cancel_scope.cancel()


async def test_what_is_told_is_told_at_once_and_alone(autojump_clock):
    ours, ear = book(), Ear()
    neighbour = Neighbour(peer(99), ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour.feed, ear)
        ours.accept(record(2))
        ours.publish(offer(1))
        neighbour.tell(peer(1))
        await trio.sleep(0.01)
        assert ear.signers() == [peer(1)]
        assert neighbour.lacks(peer(2))
        assert not neighbour.lacks(peer(1))
        neighbour.compare(0)
        await trio.sleep(1)
        assert ear.signers() == [peer(1), peer(2)]
        nursery.cancel_scope.cancel()


async def test_a_neighbour_is_not_told_of_itself_nor_what_it_said(autojump_clock):
    ours, ear = book(), Ear()
    neighbour = Neighbour(peer(2), ours)
    for number in (2, 3):
        said = record(number)
        ours.accept(said)
        neighbour.heard(said)
    ours.accept(record(4))
    neighbour.compare(0)
    with trio.move_on_after(10):
        await neighbour.feed(ear)
    assert ear.signers() == [peer(4)]


async def test_a_flood_of_news_is_sent_at_a_pace(autojump_clock):
    ours, ear = book(), Ear()
    neighbour = Neighbour(peer(99), ours)

    async def chatter():
        for sequence in range(1000):
            ours.accept(record(2, sequence))
            neighbour.tell(peer(2))
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour.feed, ear)
        nursery.start_soon(chatter)
    assert 10 < len(ear.sent) < 60
    assert isinstance(ear.sent[0][1], Records)


async def test_of_signers_that_come_and_go_no_more_is_remembered_than_the_book_holds(autojump_clock, monkeypatch):
    for module in (gossip, neighbours):
        monkeypatch.setattr(module, "MAX_PEERS", 4)
    ours, ear = book(), Ear()
    reader, mute = Neighbour(peer(99), ours), Neighbour(peer(98), ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.feed, ear)
        for number in range(2, 30):
            said = record(number)
            ours.accept(said)
            mute.tell(said.signer)
            mute.heard(said) if number % 2 else reader.tell(said.signer)
            await trio.sleep(1)
            assert max(len(reader._has), len(mute._has)) <= 8
            assert len(mute._owed) <= 4
        assert ear.signers() == [peer(number) for number in range(2, 30, 2)]
        nursery.start_soon(mute.feed, ear)
        await trio.sleep(1)
        assert ear.signers()[14:] == [peer(26), peer(28)], "of those that are left it said the others itself"
        nursery.cancel_scope.cancel()
