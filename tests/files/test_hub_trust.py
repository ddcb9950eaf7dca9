"""How far repositories are trusted: what earns a step, and what loses it."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.files.hub_trending import Trending
from meshnode.files.hub_trust import MeshFacts, Standing, Trust, TrustRules, judge, objections

DAY = 86400.0
NOW = 1_800_000_000.0
RULES = TrustRules(frozenset({"bartowski"}))
NOTHING = MeshFacts()
NEW = Trending("someone/new-GGUF", 50, 1, NOW - 3600)


def old(repository="someone/x-GGUF", downloads=0):
    return Trending(repository, downloads, 5, NOW - 30 * DAY)


@pytest.mark.parametrize(
    ("found", "facts", "trust"),
    [
        (old(), NOTHING, Trust.SEEN),
        (old(downloads=10**9), NOTHING, Trust.SEEN),
        (old("bartowski/x-GGUF", 9_999), NOTHING, Trust.SEEN),
        (old("Bartowski/x-GGUF", 10_000), NOTHING, Trust.VERIFIED),
        (attrs.evolve(old(downloads=10**9), created=NOW - 0.9 * DAY), NOTHING, Trust.SEEN),
        (NEW, MeshFacts(is_asked_for=True), Trust.WANTED),
        (NEW, MeshFacts(is_asked_for=True, requests=2.9), Trust.WANTED),
        (NEW, MeshFacts(requests=3), Trust.VERIFIED),
        (NEW, MeshFacts(holders=2), Trust.SEEN),
        (NEW, MeshFacts(holders=3), Trust.POPULAR),
    ],
)
def test_what_earns_a_step(found, facts, trust):
    assert judge(None, found, facts, RULES, NOW).trust is trust


def test_what_nothing_bears_out_any_more_falls_by_one_step_a_week():
    standing, steps = judge(None, NEW, MeshFacts(holders=3), RULES, NOW), []
    for day in range(30):
        standing = judge(standing, NEW, NOTHING, RULES, NOW + day * DAY)
        steps.append(int(standing.trust))
    assert steps == [3] * 7 + [2] * 7 + [1] * 7 + [0] * 9


def test_what_a_person_asked_for_stays_wanted():
    standing = judge(None, NEW, MeshFacts(is_asked_for=True, requests=5), RULES, NOW)
    for week in range(1, 10):
        standing = judge(standing, NEW, MeshFacts(is_asked_for=True), RULES, NOW + week * 8 * DAY)
    assert standing.trust is Trust.WANTED


def test_each_objection_is_told_with_both_numbers():
    open_to_all = TrustRules(frozenset())
    assert objections(old(downloads=100_000), open_to_all, NOW) == ()
    assert objections(old(downloads=99_999), open_to_all, NOW) == ("99999 downloads, and 100000 are trusted",)
    assert objections(attrs.evolve(NEW, repository="bartowski/a"), RULES, NOW) == (
        "50 downloads, and 10000 are trusted",
        "it is younger than 24 hours",
    )
    assert objections(old(downloads=10**9), RULES, NOW) == ("someone is not on the list hub.publishers",)


FACTS = st.builds(MeshFacts, st.booleans(), st.floats(0, 10), st.integers(0, 5))


@given(st.lists(st.tuples(st.floats(-20 * DAY, 20 * DAY), FACTS), max_size=20), st.integers(0, 10**6))
def test_nothing_falls_below_what_it_earns_nor_by_more_than_a_step_whatever_the_clock_does(looks, downloads):
    standing, now, found = None, NOW, old(downloads=downloads)
    for passed, facts in looks:
        now += passed
        after = judge(standing, found, facts, RULES, now)
        assert after.trust >= judge(None, found, facts, RULES, now).trust
        assert standing is None or after.trust >= standing.trust - 1
        assert after.since <= now
        standing = after


def test_a_clock_that_goes_back_does_not_keep_a_step_for_ever():
    standing = Standing(NEW, Trust.POPULAR, NOW + 1000 * DAY)
    standing = judge(standing, NEW, NOTHING, RULES, NOW)
    assert judge(standing, NEW, NOTHING, RULES, NOW + 7 * DAY).trust is Trust.VERIFIED
