"""How many copies: more of what is asked for, never more than there is room for, the same for everybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.placement.models import ModelFacts
from meshnode.placement.targets import Target, targets

GB = 1 << 30


def model(name, demand=0.0, gib=4, **options):
    return ModelFacts(name, 32, gib * GB // 32, demand, **options)


def copies(models, members, budget=1 << 50):
    found = targets({each.model: each for each in models}, members, budget)
    return {name: target.copies for name, target in found.items()}


def test_what_nobody_wants_has_no_target():
    assert copies([model("a"), model("b", 1), model("c", is_pinned=True)], 8).keys() == {"b", "c"}
    assert copies([model("a", 1)], 0) == {}


@pytest.mark.parametrize(("members", "expected"), [(1, 1), (2, 2), (3, 2), (16, 4), (500, 9), (5000, 13)])
def test_a_model_that_is_asked_for_all_the_time_has_as_many_as_the_logarithm_of_the_members(members, expected):
    assert copies([model("a", 1000)], members) == {"a": expected}


def test_more_demand_is_more_copies_and_two_are_the_least():
    found = copies([model("a", 0.1), model("b", 20), model("c", 200), model("d", is_pinned=True)], 500)
    assert found == {"a": 4, "b": 7, "c": 9, "d": 2}


def test_where_there_is_room_for_fewer_everybody_shrinks_and_keeps_two():
    models = [model(f"m{each}", 1000, gib=10) for each in range(10)]
    assert set(copies(models, 500, budget=400 * GB).values()) == {3}


def test_where_there_is_not_room_for_two_of_each_one_of_each_comes_first_and_the_wanted_before_others():
    models = [model("much", 100, gib=10), model("little", 1, gib=10), model("pinned", 0, gib=10, is_pinned=True)]
    assert copies(models, 10, budget=54 * GB) == {"pinned": 2, "much": 1, "little": 1}
    assert copies(models, 10, budget=27 * GB) == {"pinned": 1, "much": 1}
    assert copies(models, 10, budget=1 * GB) == {}


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 80), st.integers(1, 1 << 34), st.booleans()), max_size=30),
    st.integers(0, 600),
    st.integers(0, 1 << 45),
)
def test_targets_fit_and_their_band_is_in_order(models, members, budget):
    facts = {
        str(at): ModelFacts(str(at), blocks, size, demand, pinned)
        for at, (demand, blocks, size, pinned) in enumerate(models)
    }
    found = targets(facts, members, budget)
    assert sum(target.copies * facts[name].nbytes for name, target in found.items()) <= 0.75 * budget
    for name, target in found.items():
        assert facts[name].demand > 0 or facts[name].is_pinned
        assert 1 <= target.low <= target.copies < target.high
        assert target.copies <= members


def test_the_band_keeps_two_where_there_are_two():
    assert Target.of(2, 5) == Target(2, 2, 4)
    assert Target.of(9, 500) == Target(7, 9, 13)
    assert Target.of(9, 1) == Target(1, 1, 3)
