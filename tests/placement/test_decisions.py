"""What a node fetches and lets go: gaps are filled by as many as they need, nothing oscillates, the last copy stays."""

from random import Random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.placement.decisions import Decision, decide
from meshnode.placement.models import ModelFacts, Segment
from meshnode.placement.view import MemberView, MeshState

GB = 1 << 30


def model(name, demand=100.0, gib=8, blocks=32, **options):
    return ModelFacts(name, blocks, gib * GB // blocks, demand, **options)


def state(members, *models):
    """Members by name: (GiB of budget, names of what they hold: `a` for all of a model, `a3` for one segment)."""
    facts = {each.model: each for each in models}

    def held(texts):
        for text in texts.split():
            name, index = text[0], text[1:]
            yield from [Segment(name, int(index))] if index else list(facts[name].segments())

    views = {
        name: MemberView(name, gib * GB, frozenset(held(texts)), uptime=1e6) for name, (gib, texts) in members.items()
    }
    return MeshState(views, facts)


def after(world, decisions):
    members = dict(world.members)
    for name, decision in decisions.items():
        member = members[name]
        members[name] = attrs.evolve(member, held=(member.held | set(decision.acquire)) - set(decision.drop))
    return MeshState(members, world.models)


def settle(world, rounds=60, limit=2):
    """All nodes decide, one round after the other, until nobody does anything; return the rounds with what was done."""
    history = []
    for _ in range(rounds):
        decisions = {name: decide(world, name, limit=limit) for name in world.members}
        if not any(each.acquire or each.drop for each in decisions.values()):
            return world, history
        history.append(decisions)
        world = after(world, decisions)
    raise AssertionError(f"still moving after {rounds} rounds: {decisions}")


def test_a_model_that_was_added_on_one_node_spreads_until_there_are_enough_copies():
    world, history = settle(state({"a": (16, "m"), "b": (16, ""), "c": (16, ""), "d": (16, "")}, model("m", gib=8)))
    assert {len(who) for who in world.holders.values()} == {2}
    assert sum(len(each.acquire) for decisions in history for each in decisions.values()) == 8
    assert not any(each.drop for decisions in history for each in decisions.values())


def test_a_gap_is_filled_by_as_many_as_it_needs_and_not_by_all_who_see_it():
    world = state({f"n{each}": (16, "") for each in range(100)}, model("m"))
    (target,) = world.targets.values()
    fetching = [segment for name in world.members for segment in decide(world, name).acquire]
    assert max(fetching.count(segment) for segment in world.models["m"].segments()) <= target.copies
    world, history = settle(world)
    assert all(target.low <= len(who) <= target.copies for who in world.holders.values())
    assert len(history) < 15


def test_neighbours_are_held_together():
    """A node that has a segment is more likely to get the next one: routes have fewer stages."""
    alone = together = 0
    for each in range(100):
        members = {f"{each}-{number}": (16, "m3" if number == 0 else "") for number in range(20)}
        world = state(members, model("m"))
        together += any(segment.index in (2, 4) for segment in decide(world, f"{each}-0", limit=99).acquire)
        alone += any(segment.index in (2, 4) for segment in decide(world, f"{each}-1", limit=99).acquire)
    assert together > 1.3 * alone


def test_a_fast_node_holds_more_and_a_slow_one_not_nothing():
    members = state({f"n{number}": (16, "") for number in range(20)}, model("m")).members
    counts = {"n0": 0, "n1": 0, "n2": 0}
    for each in range(60):
        speeds = {"n0": 0.5, "n1": 2.0}
        views = {name: attrs.evolve(member, speed=speeds.get(name, 1.0)) for name, member in members.items()}
        name = f"m{each}"
        world = MeshState(views, {name: model(name)})
        for peer in counts:
            counts[peer] += len(decide(world, peer, limit=99).acquire)
    assert 0 < counts["n0"] < counts["n2"] < counts["n1"]


def test_a_node_holds_one_run_of_blocks_of_each_model():
    world, _ = settle(state({f"n{each}": (6, "") for each in range(30)}, model("m"), model("o", gib=12)))
    for member in world.members.values():
        for name in "mo":
            indexes = sorted(segment.index for segment in member.held if segment.model == name)
            assert indexes == list(range(indexes[0], indexes[-1] + 1)) if indexes else True


def test_nobody_takes_more_than_it_has_room_for():
    world, _ = settle(state({"a": (5, ""), "b": (5, ""), "c": (40, "")}, model("m", gib=8)))
    assert all(world.free[name] >= 0 for name in world.members)
    assert min(len(who) for who in world.holders.values()) >= 1


def test_when_a_node_goes_only_what_it_held_moves():
    full, _ = settle(state({f"n{each}": (8, "") for each in range(20)}, model("m"), model("o", 50), model("p", 5)))
    gone = full.members["n7"].held
    rest = MeshState({name: member for name, member in full.members.items() if name != "n7"}, full.models)
    _, history = settle(rest)
    moved = [segment for decisions in history for each in decisions.values() for segment in each.acquire]
    assert set(moved) <= gone
    assert len(moved) <= 3 * max(1, len(gone))


def test_what_a_node_brings_back_counts_again():
    full, _ = settle(state({f"n{each}": (8, "") for each in range(12)}, model("m")))
    away = MeshState({name: member for name, member in full.members.items() if name != "n3"}, full.models)
    repaired, _ = settle(away)
    back = MeshState({**repaired.members, "n3": full.members["n3"]}, full.models)
    _, history = settle(back)
    assert not any(each.acquire for decisions in history for each in decisions.values())


def test_what_nobody_wants_stays_until_its_room_is_needed():
    calm = state({"a": (64, "m"), "b": (64, "m")}, model("m", demand=0))
    assert decide(calm, "a") == Decision()
    crowded = state({"a": (8, "m"), "b": (8, "m")}, model("m", demand=0))
    after_all, _ = settle(crowded)
    assert {len(who) for who in after_all.holders.values()} == {1, 2}, (
        "no more than the room that is needed, and one stays"
    )
    dropping = [
        peer
        for name in "mnop"
        for needy in [state({"a": (8, name), "b": (64, name), "c": (64, name)}, model(name, demand=0))]
        for peer in "abc"
        if decide(needy, peer).drop
    ]
    assert set(dropping) == {"a"}, "it is the one who needs the room"


@pytest.mark.parametrize("demand", [0, 3, 100])
def test_the_last_copy_never_goes(demand):
    world = state({"a": (2, "m"), "b": (64, "")}, model("m", demand=demand))
    assert decide(world, "a").drop == ()
    without_room = state({"a": (16, "m n")}, model("m", demand=1000), model("n", demand=demand))
    assert decide(without_room, "a").drop == ()
    members = {**world.members, "b": attrs.evolve(world.members["b"], held=world.members["a"].held)}
    members["b"] = attrs.evolve(members["b"], claimed=members["b"].held)
    assert decide(MeshState(members, world.models), "a").drop == (), "what is on its way may never come"


def test_two_who_see_each_other_differently_do_not_both_let_the_last_copy_go():
    world = state({"a": (8, "m"), "b": (8, "m")}, model("m", demand=0))

    def seen_by(own, other):
        young = attrs.evolve(world.members[own], uptime=1.0)
        return decide(MeshState({own: young, other: world.members[other]}, world.models), own).drop

    assert set(seen_by("a", "b")).isdisjoint(seen_by("b", "a"))


def test_what_is_kept_or_on_its_way_does_not_go():
    world = state({"a": (8, "m"), "b": (8, "m")}, model("m", demand=0))
    everything = world.members["a"].held
    assert decide(world, "a", kept=everything).drop == ()
    members = {**world.members, "a": attrs.evolve(world.members["a"], claimed=everything)}
    assert decide(MeshState(members, world.models), "a").drop == ()


def test_too_many_copies_are_thinned_out_by_those_who_suit_least_and_not_below_the_target():
    world = state({f"n{each}": (16, "m") for each in range(12)}, model("m", demand=1))
    (target,) = world.targets.values()
    after_all, _ = settle(world)
    assert {len(who) for who in after_all.holders.values()} == {target.high}


@given(seed=st.integers(0, 10_000), nodes=st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_whatever_the_mesh_it_comes_to_rest_and_nothing_is_fetched_that_was_let_go(seed, nodes):
    rng = Random(seed)
    models = [
        model(name, rng.choice([0, 1, 50, 500]), rng.choice([1, 4, 20]), rng.choice([3, 16, 80])) for name in "mnop"
    ]
    members = {f"x{each}": (rng.choice([2, 8, 32]), rng.choice(["", "m", "n", "m n"])) for each in range(nodes)}
    _, history = settle(state(members, *models))
    gone = set()
    for decisions in history:
        for name, decision in decisions.items():
            assert gone.isdisjoint((name, segment) for segment in decision.acquire)
            gone.update((name, segment) for segment in decision.drop)


@pytest.mark.parametrize("blocks", [1, 3, 8, 30, 61])
def test_segments_cover_a_model_once(blocks):
    facts = ModelFacts("m", blocks, 7)
    covered = [block for segment in facts.segments() for block in facts.blocks(segment.index)]
    assert covered == list(range(blocks))
    assert sum(facts.segment_bytes(segment.index) for segment in facts.segments()) == facts.nbytes
