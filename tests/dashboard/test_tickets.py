"""A ticket is good once, and for a minute."""

import trio

from meshnode.dashboard.tickets import Tickets


async def test_a_ticket_is_good_once(autojump_clock):
    tickets = Tickets()
    ticket, other = tickets.issue(), tickets.issue()
    assert ticket != other
    assert [tickets.redeem(ticket), tickets.redeem(ticket), tickets.redeem(other)] == [True, False, True]


async def test_a_ticket_is_good_for_a_minute(autojump_clock):
    tickets = Tickets()
    early, late = tickets.issue(), tickets.issue()
    await trio.sleep(59)
    assert tickets.redeem(early)
    await trio.sleep(2)
    assert not tickets.redeem(late)


async def test_what_was_never_issued_is_not_good(autojump_clock):
    assert not Tickets().redeem("")
    assert not Tickets().redeem("guess")


async def test_there_are_never_many():
    tickets = Tickets()
    issued = [tickets.issue() for _ in range(100)]
    assert not tickets.redeem(issued[0])
    assert tickets.redeem(issued[-1])
    assert sum(map(tickets.redeem, issued)) <= 8


def test_a_ticket_does_not_show():
    assert repr(Tickets()).startswith("<")
