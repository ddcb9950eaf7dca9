"""Whom the finder may use again after a loss: whoever has said something new since, or has been linked anew."""

import attrs
import pytest
import trio

from meshnode.errors import NoRoute
from meshnode.flow.latest import Latest
from meshnode.inference.planner import RouteRequest
from meshnode.inference.privacy import Privacy
from meshnode.inference.route_finder import RouteFinder
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.peers import Liveness, Offer, PeerInfo, StageOffer

OWN, PEER = PeerId("12D3a"), PeerId("12D3b")
MODEL = ModelId("00" * 32)
WHOLE = StageOffer(MODEL, "tiny", 4, 8, 100, BlockRange(0, 4), True, True, "class", 0.001, 0.001, 100)
WISH = RouteRequest(MODEL, 4, 20)
THERE = PeerInfo(PEER, Liveness.ALIVE, connected=True, offer=Offer(PEER, 7, 0.0, "1", (), (WHOLE,)), links=1)
GONE = PeerInfo(PEER, Liveness.DEAD, connected=False, links=1)


@attrs.define
class World:
    peer: PeerInfo = THERE
    changed: Latest = attrs.field(factory=lambda: Latest(0))

    def peers(self):
        return (self.peer,)

    def become(self, peer):
        self.peer = peer
        self.changed.set(self.changed.value + 1)


def new_finder(world, privacy=Privacy.ANYONE):
    return RouteFinder(OWN, world, tuple, privacy, False)


NEWS = {
    "said something new": attrs.evolve(THERE, offer=attrs.evolve(THERE.offer, sequence=8)),
    "been linked anew": attrs.evolve(THERE, links=2),
}


@pytest.mark.parametrize("news", NEWS)
async def test_a_peer_that_was_lost_is_used_again_once_it_has(news, autojump_clock):
    world = World()
    finder = new_finder(world)
    barred = {PEER: finder.sequence(PEER)}
    with pytest.raises(NoRoute):
        await finder.wait(WISH, barred, frozenset(), 5.0)
    world.become(GONE)
    with pytest.raises(NoRoute):
        await finder.wait(WISH, barred, frozenset(), 5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_later, world, NEWS[news])
        assert (await finder.wait(WISH, barred, frozenset(), 5.0)).coordinator == PEER


async def _later(world, peer):
    await trio.sleep(2)
    world.become(peer)


@pytest.mark.parametrize(
    ("privacy", "peer", "allowed"),
    [
        (Privacy.ANYONE, THERE, True),
        (Privacy.THIS_NODE_ONLY, attrs.evolve(THERE, lan=True, pool=True), False),
        (Privacy.POOL_AND_LAN, THERE, False),
        (Privacy.POOL_AND_LAN, attrs.evolve(THERE, lan=True), True),
        (Privacy.POOL_AND_LAN, attrs.evolve(THERE, pool=True), True),
    ],
)
async def test_the_privacy_rule_says_who_is_asked_at_all(privacy, peer, allowed):
    finder = new_finder(World(peer), privacy)
    if allowed:
        assert finder.plan(WISH).peers == {PEER}
    else:
        with pytest.raises(NoRoute):
            finder.plan(WISH)
