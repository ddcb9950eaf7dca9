"""What is made of what members say of themselves."""

from meshnode.placement.models import Segment
from meshnode.placement.picture import picture
from meshnode.types.blocks import BlockRange
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo, Room, StageOffer


def holding(*ranges, count=30, **ends):
    blocks = tuple(BlockRange(start, end) for start, end in ranges)
    return Holding("m", "m", count, blocks, nbytes=sum(map(len, blocks)) * 100, **ends)


def peer(name, held, seconds=None, **room):
    stages = () if seconds is None else (stage(seconds),)
    offer = Offer(name, 1, 0.0, "1", (), stages=stages, holdings=(held,), room=Room(**room))
    return PeerInfo(name, Liveness.ALIVE, connected=True, offer=offer)


def stage(seconds):
    blocks = BlockRange(0, 10)
    return StageOffer("m", "m", 30, 8, 8, blocks, True, False, "x", seconds, seconds, 0)  # its ends


def test_three_who_cut_a_model_into_tens_have_one_copy_of_it():
    first, last = holding((0, 10), embedding=True), holding((20, 30), head=True)
    state = picture("a", (first,), Room(), [peer("b", holding((10, 20))), peer("c", last)])
    segments = list(state.models["m"].segments())
    assert [state.copies(segment) for segment in segments] == [1] * 8
    assert [state.sources(segment) for segment in segments] == [1] * 8
    assert sum(len(state.holders[segment]) for segment in segments) == 6, "two lie across the cuts"
    assert all(state.free[name] == -1000 for name in "abc"), "every block takes room"
    without = picture("a", (first,), Room(), [peer("b", holding((10, 19))), peer("c", last)])
    assert [state.index for state in segments if without.copies(state) == 0] == [5]


def test_an_end_without_what_goes_with_it_is_not_there():
    state = picture("a", (holding((0, 30), head=True),), Room(), [])
    assert [state.copies(segment) for segment in state.models["m"].segments()] == [0] + [1] * 7


def test_what_is_being_fetched_counts_as_held_and_is_no_source():
    fetching = peer("b", holding((0, 4)), fetching=(("m", BlockRange(3, 7)),))
    state = picture("a", (holding((0, 30), embedding=True, head=True),), Room(), [fetching])
    segment = Segment("m", 1)
    assert (state.copies(segment), state.sources(segment)) == (2, 1)


def test_speed_is_relative_to_the_median_and_bounded():
    peers = [peer(name, holding((0, 10)), seconds) for name, seconds in [("b", 1.0), ("c", 0.8), ("d", 100.0)]]
    state = picture("a", (holding((0, 10)),), Room(), [*peers, peer("e", holding((0, 10)))], (stage(0.01),))
    speeds = {name: round(member.speed, 2) for name, member in state.members.items()}
    assert speeds == {"a": 2.0, "b": 0.89, "c": 1.11, "d": 0.5, "e": 1.0}
