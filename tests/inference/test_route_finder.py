"""Whom the finder may use again after a loss: whoever has said something new since, or has been linked anew."""

import attrs
import pytest
import trio

from meshnode.errors import NoRoute
from meshnode.flow.latest import Latest
from meshnode.inference.planner import RouteRequest
from meshnode.inference.privacy import Privacy
from meshnode.inference.recent_routes import RecentRoutes, beginnings_of
from meshnode.inference.route_finder import Bar, RouteFinder
from meshnode.types.blocks import BlockRange
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import ModelId, PeerId, RequestId
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo, StageOffer
from meshnode.types.routes import Route, Stage

OWN, PEER = PeerId("12D3a"), PeerId("12D3b")
MODEL = ModelId("00" * 32)
WHOLE = StageOffer(MODEL, "tiny", 4, 8, 100, BlockRange(0, 4), True, True, "class", 0.001, 0.001, 100)
WISH = RouteRequest(MODEL, 4, 20)
THERE = PeerInfo(PEER, Liveness.ALIVE, connected=True, offer=Offer(PEER, 7, 0.0, "1", (), (WHOLE,)), links=1)
GONE = PeerInfo(PEER, Liveness.DEAD, connected=False, links=1)


@attrs.define
class World:
    peer: PeerInfo = THERE
    others: tuple = ()
    looks: int = 0
    changed: Latest = attrs.field(factory=lambda: Latest(0))

    def peers(self):
        self.looks += 1
        return (self.peer, *self.others)

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
    barred = {PEER: Bar.after(None, finder.sequence(PEER), for_good=True)}
    with pytest.raises(NoRoute):
        await finder.wait(WISH, barred, frozenset(), 5.0)
    world.become(GONE)
    with pytest.raises(NoRoute):
        await finder.wait(WISH, barred, frozenset(), 5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_later, world, NEWS[news])
        assert (await finder.wait(WISH, barred, frozenset(), 5.0)).coordinator == PEER


async def test_a_bar_lasts_twice_as_long_each_time(autojump_clock):
    """Who was only slow has nothing new to say of itself."""
    finder = new_finder(World())
    bar = Bar.after(None, finder.sequence(PEER))
    for seconds in (5, 10, 20):
        began = trio.current_time()
        assert (await finder.wait(WISH, {PEER: bar}, frozenset(), 60.0)).coordinator == PEER
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.2)
        bar = Bar.after(bar, finder.sequence(PEER))


async def _later(world, peer, seconds=2):
    await trio.sleep(seconds)
    world.become(peer)


def holder(blocks, *stages, others=(), **changes):
    """A peer with a part on disk, and what it has loaded."""
    holding = Holding(MODEL, "tiny", 4, tuple(BlockRange(*each) for each in blocks), embedding=True, head=True)
    offer = attrs.evolve(THERE.offer, stages=stages, holdings=(holding, *others))
    return attrs.evolve(THERE, offer=offer, **changes)


HALF, REST = attrs.evolve(WHOLE, blocks=BlockRange(0, 2)), attrs.evolve(WHOLE, blocks=BlockRange(2, 4))


async def test_a_part_that_is_being_loaded_anew_is_waited_for_where_no_turn_is_held(autojump_clock):
    """More blocks have come to it: its worker ends, and the next one needs a while."""
    world = World(
        holder([(1, 4)]), (attrs.evolve(THERE, peer=PeerId("12D3c"), offer=attrs.evolve(THERE.offer, stages=(HALF,))),)
    )
    finder = new_finder(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_later, world, holder([(1, 4)], REST), 7)
        assert (await finder.wait(WISH, {}, frozenset(), 5.0, 30.0)).peers == {PEER, "12D3c"}
    world.become(holder([(1, 4)]))
    for loading, seconds, end in (
        (0.0, 5, "start one that does"),
        (8.0, 8, "lies on disks, and was not loaded in time"),
    ):
        began = trio.current_time()
        with pytest.raises(NoRoute, match=f"blocks 2:4 of 4; .*{end}$"):
            await finder.wait(WISH, {}, frozenset(), 5.0, loading)
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.2)


async def test_of_all_who_line_up_for_the_same_only_the_first_looks_and_each_is_told_in_its_time(autojump_clock):
    world, told = World(GONE), []
    finder = new_finder(world)

    async def ask(came):
        await trio.sleep(came)
        try:
            await finder.line_up(WISH, 5.0, 30.0)
        except NoRoute:
            told.append(trio.current_time() - began - came)

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        for came in range(3):
            nursery.start_soon(ask, came)
    assert told == pytest.approx([5, 5, 5], abs=0.2)
    world.looks = 0
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(ask, 0)
        nursery.start_soon(_later, world, THERE)
    assert len(told) == 3
    assert world.looks < 60


@pytest.mark.parametrize(
    "peer",
    [
        holder([(0, 3)]),
        holder([(0, 4)], attrs.evolve(WHOLE, free_tokens=0)),
        holder([(0, 4)], others=(Holding(ModelId("11" * 32), "other", 1, (BlockRange(0, 1),), True, True),)),
        holder([(0, 4)], liveness=Liveness.DEAD),
        THERE,
    ],
    ids=["not all of it", "loaded, and full", "two whole models, loaded when asked for", "dead", "barred"],
)
async def test_who_loads_nothing_that_helps_is_waited_for_no_longer(peer, autojump_clock):
    finder = new_finder(World(peer))
    bars = {PEER: Bar.after(None, finder.sequence(PEER), for_good=True)} if peer is THERE else {}
    began = trio.current_time()
    with pytest.raises(NoRoute):
        await finder.wait(WISH, bars, frozenset(), 5.0, 30.0)
    assert trio.current_time() - began == pytest.approx(5, abs=0.2)


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


def neighbour(number, **changes):
    return PeerInfo(
        PeerId(f"n{number:03}"), Liveness.ALIVE, connected=True, lan=True, round_trip=number / 1e3, **changes
    )


async def test_who_goes_by_its_own_network_names_it_to_whoever_coordinates(autojump_clock):
    """And on a node that works for another, those that both allow; of too many those that are of most use."""
    world = World(others=(*(neighbour(number) for number in range(400)),))
    careful, careless = new_finder(world, Privacy.POOL_AND_LAN), new_finder(world)
    assert careless.named(WISH) is None
    theirs = attrs.evolve(WISH, privacy=Privacy.POOL_AND_LAN, peers=frozenset({"n007", PEER, OWN, "elsewhere"}))
    assert careless.named(theirs) == careful.named(theirs) == {OWN, "n007"}
    assert careful.named(WISH) == {OWN, *(f"n{number:03}" for number in range(255))}
    world.become(attrs.evolve(THERE, lan=True))
    assert careful.named(WISH) == {OWN, PEER, *(f"n{number:03}" for number in range(254))}
    with pytest.raises(NoRoute):
        careful.plan(attrs.evolve(WISH, peers=frozenset({"n007"})))


def asked(*texts, **changes):
    request = GenerationRequest(RequestId("r"), "tiny", tuple(ChatMessage("user", text) for text in texts), **changes)
    return attrs.evolve(WISH, prompt_tokens=1000, beginnings=beginnings_of(MODEL, request))


@pytest.mark.parametrize(
    ("later", "over"),
    [
        (asked("A" * 5000), "c"),
        (asked("A" * 5000, "And then?"), "c"),
        (asked("B" * 5000), "b"),
        (WISH, "b"),
        (asked("A" * 5000, embeds=True), "b"),
    ],
    ids=["the same again", "its next turn", "another text", "nothing known of it", "all of it is read each time"],
)
def test_who_has_read_the_beginning_of_a_text_gets_what_follows(later, over):
    other = attrs.evolve(THERE, peer=PeerId("12D3c"), offer=attrs.evolve(THERE.offer, sessions=0))
    finder = new_finder(World(others=(other,)))
    assert finder.plan(asked("A" * 5000)).peers == {PEER}  # the first of equals
    finder.remember(asked("A" * 5000), Route(MODEL, (Stage(other.peer, BlockRange(0, 4)),), "class"))
    assert finder.plan(later).peers == {f"12D3{over}"}


def test_who_has_read_it_and_is_busy_barred_or_gone_does_not_get_it():
    wish, other = asked("A" * 5000), attrs.evolve(THERE, peer=PeerId("12D3c"))
    world = World(others=(other,))
    finder = new_finder(world)
    finder.remember(wish, Route(MODEL, (Stage(other.peer, BlockRange(0, 4)),), "class"))
    assert finder.plan(wish).peers == {other.peer}
    assert finder.plan(attrs.evolve(wish, barred=frozenset({other.peer}))).peers == {PEER}
    world.others = (attrs.evolve(other, offer=attrs.evolve(THERE.offer, sessions=9)),)
    assert finder.plan(wish).peers == {PEER}
    world.others = ()
    assert finder.plan(wish).peers == {PEER}


def test_the_texts_that_were_read_last_are_remembered():
    recent, (first, *_), routes = RecentRoutes(), asked("A" * 600).beginnings, {}
    for number in range(100):
        peer = PeerId(str(number))
        routes[peer] = asked("A" * 512 + f"{number:02}" * 51200).beginnings
        recent.note(routes[peer], Route(MODEL, (Stage(peer, BlockRange(0, 4)),), "class"))
    known = [peer for peer, names in routes.items() if recent.readers(names) == ({peer}, 1.0)]
    assert known == list(map(str, range(100 - len(known), 100)))
    assert 20 < len(known) < 80
    assert recent.readers([first])[0] == {"99"}
