"""What control messages lead to: peer exchange, records of others, and what is held against whoever sent them."""

import attrs
import pytest
import trio
import trio.testing
from support.memory_hosts import address_of, identity_of

from meshnode.errors import PeerRefused
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.network.control_inbox import ControlInbox
from meshnode.network.gossip import GossipBook
from meshnode.network.neighbours import Neighbour
from meshnode.network.peers import PeerTable
from meshnode.network.stage_links import ControlReceived
from meshnode.observe.metrics import Metrics
from meshnode.types.blocks import BlockRange
from meshnode.types.evidence import Misdeed
from meshnode.types.peers import Offer
from meshnode.wire.control_messages import (
    Introduction,
    Introductions,
    IntroductionsWanted,
    Kept,
    KeptWanted,
    Records,
    SignedRecord,
    TicketRequest,
)
from meshnode.wire.failures import Failed

OWN, ASKER = identity_of(1).peer, identity_of(2).peer
NOW = 1e9
MODEL = "5e" * 32


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


@attrs.define(eq=False)
class Link:
    peer: str
    rtt: float | None = None
    missed: int = 0
    is_relayed: bool = False
    sent: list = attrs.field(factory=list)

    async def send(self, message, body=b"", exchange=0):
        self.sent.append((message, exchange))


class Links:
    def __init__(self, book):
        self.links, self.neighbours, self.spreading = {}, {}, []
        self.book = book

    def to(self, peer):
        return self.links.setdefault(peer, Link(peer))

    def neighbour(self, peer):
        return self.neighbours.setdefault(peer, Neighbour(peer, self.book))

    def spread(self, signer):
        self.spreading.append(signer)


class Plane:
    def grant(self, peer, request):
        raise PeerRefused("no tickets today")


@pytest.fixture
def inbox():
    book = GossipBook(identity_of(1), "home", lambda: NOW)
    evidence = Mailbox("evidence", 64)

    def keeps(model, blocks):
        return (model, blocks) == (MODEL, BlockRange(3, 7))

    return ControlInbox(PeerTable(OWN, Latest({})), book, Links(book), Plane(), evidence, Metrics(), keeps)


def connect(inbox, *numbers):
    for number in numbers:
        peer = identity_of(number).peer
        inbox.table.linked(Link(peer), lan=False)
        inbox.table.learn(peer, [address_of(number)])


async def take(inbox, message, *, sender=ASKER, exchange=7):
    """Let the inbox take one message; return what it answered."""
    link = inbox.links.to(sender)
    link.sent.clear()
    await inbox._take(ControlReceived(link, exchange, message))
    return link.sent


def record(number, sequence=1, *, issued=NOW, network="home", author=None):
    signer = GossipBook(identity_of(author or number), network, lambda: NOW)
    offer = Offer(identity_of(number).peer, sequence, issued, "1", (address_of(number),))
    signer.publish(offer)
    signed = signer._records[offer.peer][0]
    return SignedRecord(offer.peer, signed.payload, signed.signature)


async def test_who_asks_is_introduced_to_those_we_are_linked_to_but_not_to_itself(inbox):
    connect(inbox, 2, 3, 4)
    inbox.table.learn(identity_of(5).peer, [address_of(5)])  # by hearsay
    ((answer, exchange),) = await take(inbox, IntroductionsWanted(16))
    assert exchange == 7
    assert {each.peer for each in answer.peers} == {identity_of(3).peer, identity_of(4).peer}
    assert {address for each in answer.peers for address in each.addresses} == {address_of(3), address_of(4)}


@pytest.mark.parametrize(("wanted", "given"), [(-5, 0), (0, 0), (1, 1), (10**9, 64)])
async def test_no_more_are_introduced_than_asked_for_nor_than_fit(inbox, wanted, given):
    connect(inbox, *range(3, 103))
    ((answer, _),) = await take(inbox, IntroductionsWanted(wanted))
    assert len(answer.peers) == given


async def test_those_we_are_introduced_to_are_known_afterwards_and_prove_nothing(inbox):
    ours = Introduction(OWN, (address_of(9),))
    await take(inbox, Introductions((Introduction(identity_of(3).peer, (address_of(3),)), ours)))
    (info,) = inbox.table.peers()
    assert (info.peer, info.addresses, info.connected, info.offer) == (
        identity_of(3).peer,
        (address_of(3),),
        False,
        None,
    )


async def test_a_record_goes_into_the_book_and_the_table_and_is_handed_on_when_it_is_news(inbox):
    await take(inbox, Records((record(3), record(4), record(3))))
    assert inbox.links.spreading == [identity_of(3).peer, identity_of(4).peer]
    assert {info.peer for info in inbox.table.peers() if info.offer} == {identity_of(3).peer, identity_of(4).peer}


@pytest.mark.parametrize(
    ("signed", "misdeed"),
    [
        (record(3, author=4), Misdeed.FORGED),
        (record(3, network="work"), Misdeed.FORGED),
        (record(2, issued=NOW - 1e6), Misdeed.STALE),
        (record(2, issued=NOW + 1e6), Misdeed.STALE),
    ],
)
async def test_what_no_honest_peer_hands_on_is_held_against_who_sent_it_not_who_signed(inbox, signed, misdeed):
    await take(inbox, Records((signed, record(5))))
    assert inbox.evidence.waiting() == 1
    with inbox.evidence.serve() as letters:
        held = (await anext(letters)).question
    assert (held.peer, held.misdeed) == (ASKER, misdeed)
    assert [info.peer for info in inbox.table.peers()] == [identity_of(5).peer]


@pytest.mark.parametrize("age", [1e6, -1e6])
async def test_who_hands_on_what_is_too_old_by_our_clock_is_not_to_blame(inbox, age):
    await take(inbox, Records((record(3, issued=NOW - age), record(5))))
    assert inbox.evidence.waiting() == 0
    assert inbox.metrics.registry.get_sample_value("meshnode_network_stale_records_total") == 1
    assert [info.peer for info in inbox.table.peers()] == [identity_of(5).peer]


async def test_a_flood_of_forgeries_does_not_fill_the_node(inbox):
    for _ in range(1000):
        await take(inbox, Records((record(3, author=4),)))
    assert inbox.evidence.waiting() == 64
    assert inbox.evidence.refused == 1000 - 64
    assert inbox.table.peers() == ()


@pytest.mark.parametrize(("blocks", "kept"), [((3, 7), True), ((3, 8), False), ((7, 3), False)])
async def test_who_asks_what_is_kept_is_told(inbox, blocks, kept):
    assert await take(inbox, KeptWanted(MODEL, *blocks)) == [(Kept(kept), 7)]


async def test_who_is_banned_gets_no_ticket(inbox):
    inbox.table.failures.set({ASKER: 100})
    ((answer, _),) = await take(inbox, TicketRequest("activations"))
    assert "too much trouble" in answer.message


async def test_a_ticket_that_is_refused_is_refused_with_the_reason(inbox):
    ((answer, exchange),) = await take(inbox, TicketRequest("activations"))
    assert isinstance(answer, Failed)
    assert "no tickets today" in answer.message
    assert exchange == 7
