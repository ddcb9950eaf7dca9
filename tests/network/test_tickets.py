import pytest
import trio
import trio.testing

from meshnode.errors import PeerRefused
from meshnode.network.tickets import Purpose, TicketBook
from meshnode.types.ids import PeerId


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0)


A, B = PeerId("a"), PeerId("b")


async def test_a_ticket_lets_in_whom_it_was_given_to_once(autojump_clock):
    book = TicketBook()
    token = book.issue(A, Purpose.BULK)
    admission = book.redeem(token)
    assert (admission.peer, admission.purpose) == (A, Purpose.BULK)
    with pytest.raises(PeerRefused):
        book.redeem(token)


async def test_a_ticket_expires(autojump_clock):
    book = TicketBook(lifetime=30)
    early, late = book.issue(A, Purpose.BULK), book.issue(A, Purpose.BULK)
    await trio.sleep(29)
    book.redeem(early)
    await trio.sleep(1)
    with pytest.raises(PeerRefused):
        book.redeem(late)


async def test_a_token_nobody_gave_lets_nobody_in(autojump_clock):
    book = TicketBook()
    book.issue(A, Purpose.ACTIVATIONS)
    with pytest.raises(PeerRefused):
        book.redeem(bytes(32))


async def test_one_peer_cannot_take_the_tickets_of_another(autojump_clock):
    book = TicketBook(per_peer=3)
    theirs = book.issue(B, Purpose.ACTIVATIONS)
    ours = [book.issue(A, Purpose.ACTIVATIONS) for _ in range(10)]
    assert len(book) == 4
    assert book.redeem(theirs).peer == B
    assert [book.redeem(token).peer for token in ours[-3:]] == [A] * 3
    with pytest.raises(PeerRefused):
        book.redeem(ours[0])


async def test_the_book_is_bounded(autojump_clock):
    book = TicketBook()
    for number in range(5000):
        book.issue(PeerId(str(number)), Purpose.ACTIVATIONS)
        assert len(book) == min(number + 1, 4096)
