"""The table of peers: what is known of each, and that a new link is news."""

import attrs
import trio
import trio.testing

from meshnode.flow.latest import Latest
from meshnode.network.peers import PeerTable
from meshnode.types.ids import PeerId
from meshnode.types.peers import Liveness, Offer

OWN, PEER = PeerId("12D3a"), PeerId("12D3b")
OFFER = Offer(PEER, 7, 0.0, "1", ("/ip4/192.0.2.7/tcp/1/p2p/12D3b",))


@attrs.define(eq=False)
class Link:
    peer: PeerId = PEER
    rtt: float | None = 0.01
    missed: int = 0
    is_relayed: bool = False


def new_table(failures=None):
    return PeerTable(OWN, Latest(failures or {}))


async def test_a_peer_lives_as_long_as_its_link_and_each_link_counts():
    table = new_table()
    link = Link()
    table.linked(link, lan=True)
    table.heard(OFFER)
    (info,) = table.peers()
    assert (info.liveness, info.connected, info.lan, info.offer, info.links) == (Liveness.ALIVE, True, True, OFFER, 1)
    link.missed = 1
    assert table.peers()[0].liveness is Liveness.SUSPECT
    table.unlinked(link)
    (info,) = table.peers()
    assert (info.liveness, info.connected, info.lan, info.offer, info.links) == (Liveness.DEAD, False, False, None, 1)
    assert info.addresses == OFFER.addresses  # where to look for it
    table.linked(Link(), lan=False)
    table.heard(OFFER)
    assert table.peers()[0].links == 2


async def test_the_end_of_a_link_that_was_replaced_is_no_news():
    table = new_table()
    old = Link()
    table.linked(old, lan=False)
    table.linked(Link(), lan=False)
    table.heard(OFFER)
    seen = table.changed.version
    table.unlinked(old)
    assert table.changed.version == seen
    assert table.peers()[0].offer == OFFER


async def test_whoever_waits_for_news_hears_of_it():
    table = new_table()
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.changed.changed, table.changed.version)
            await trio.testing.wait_all_tasks_blocked()
            table.heard(OFFER)


async def test_who_has_done_too_much_is_not_shown():
    table = new_table({PEER: 20})
    table.heard(OFFER)
    assert table.is_banned(PEER)
    assert table.peers() == ()
