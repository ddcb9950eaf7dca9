"""The planner against one that tries everything."""

import itertools
import math
from random import Random

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshnode.errors import NoRoute
from meshnode.inference.planner import MIXED, Candidate, RouteRequest, plan_route
from meshnode.inference.privacy import Privacy, may_see, privacy_of, stricter
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.peers import Liveness, PeerInfo, StageOffer
from meshnode.types.routes import Stage

MODEL = ModelId("model")
VISIT = 0.002  # seconds a stage border costs, whoever runs it
BLOCKS = 5


def offer(start, end, count=BLOCKS, **options):
    defaults = {
        "model": MODEL,
        "name": "m",
        "block_count": count,
        "hidden_size": 8,
        "context_length": 100,
        "blocks": BlockRange(start, end),
        "embedding": start == 0,
        "head": end == count,
        "drift_class": "x",
        "block_seconds": 0.01,
        "prefill_seconds": 0.001,
        "free_tokens": 100,
    }
    return StageOffer(**(defaults | options))


def candidate(peer, start, end, *, round_trip=0.01, sessions=0, count=BLOCKS, **options):
    return Candidate(PeerId(peer), offer(start, end, count, **options), round_trip, sessions)


WISH = RouteRequest(MODEL, BLOCKS, 50, prompt_tokens=30, answer_tokens=60)


# The reference


def usable(wish, each):
    fits = min(each.offer.free_tokens, each.offer.context_length) >= wish.tokens
    return each.offer.model == wish.model and fits and each.peer not in wish.barred


def seconds(wish, path):
    """What a decode step over a path costs: every border, round trip and block, and the prefill's share of each block."""
    keeper = wish.boomerang or wish.coordinator
    total = 0.0
    for index, (each, blocks) in enumerate(path):
        block = each.offer.block_seconds + each.offer.prefill_seconds * wish.prompt_tokens / wish.answer_tokens
        total += len(blocks) * max(1e-6, block) * (1 + each.sessions)
        if index or each.peer != keeper:
            total += VISIT + each.round_trip
    return total


def paths(candidates, begin, count):
    """Every way to run the blocks from `begin`, by pieces of what is offered."""
    if begin == count:
        yield ()
        return
    for each in candidates:
        if each.offer.blocks.start <= begin < each.offer.blocks.end:
            for end in range(begin + 1, each.offer.blocks.end + 1):
                for rest in paths(candidates, end, count):
                    yield ((each, BlockRange(begin, end)), *rest)


def allowed(wish, path):
    if wish.boomerang is not None:
        return True
    first, last = path[0][0], path[-1][0]
    return first.offer.embedding and last.offer.head and wish.coordinator in (None, first.peer)


def cheapest(wish, candidates):
    """Return (seconds, drift class) of the best path, None if there is none."""
    candidates = [each for each in candidates if usable(wish, each)]

    def best(name):
        among = [each for each in candidates if name in (MIXED, each.offer.drift_class)]
        keepers = [each.offer for each in among if each.peer == wish.boomerang]
        if wish.boomerang is not None and not any(each.embedding and each.head for each in keepers):
            return None
        return min((seconds(wish, path) for path in paths(among, 0, wish.block_count) if allowed(wish, path)),
                   default=None)  # fmt: skip

    classes = {each.offer.drift_class for each in candidates}
    found = {name: cost for name in classes if (cost := best(name)) is not None}
    if wish.drift_class in found:
        return found[wish.drift_class], wish.drift_class
    if found:
        name = min(found, key=found.get)
        return found[name], name
    mixed = best(MIXED)
    return None if mixed is None else (mixed, MIXED)


@st.composite
def candidates_of(draw):
    start = draw(st.integers(0, BLOCKS - 1))
    end = draw(st.integers(start + 1, BLOCKS))
    return candidate(
        draw(st.sampled_from("abcde")),
        start,
        end,
        round_trip=draw(st.floats(0, 0.1)),
        sessions=draw(st.integers(0, 3)),
        embedding=draw(st.booleans()) or start == 0,
        head=draw(st.booleans()) or end == BLOCKS,
        drift_class=draw(st.sampled_from("xy")),
        block_seconds=draw(st.floats(0, 0.02)),
        prefill_seconds=draw(st.floats(0, 0.01)),
        free_tokens=draw(st.sampled_from([40, 50, 100])),
        context_length=draw(st.sampled_from([49, 50, 4096])),
    )


WISHES = st.builds(
    RouteRequest,
    model=st.just(MODEL),
    block_count=st.just(BLOCKS),
    tokens=st.sampled_from([1, 45, 50]),
    prompt_tokens=st.integers(0, 1000),
    answer_tokens=st.integers(1, 500),
    coordinator=st.sampled_from([None, None, "a"]),
    drift_class=st.sampled_from([None, "x", "y", "z"]),
    barred=st.frozensets(st.sampled_from("bcd"), max_size=2),
    boomerang=st.sampled_from([None, None, None, "a"]),
)


def plan(wish, candidates):
    try:
        return plan_route(wish, candidates)
    except NoRoute:
        return None


@settings(max_examples=400)
@given(WISHES, st.lists(candidates_of(), max_size=6))
def test_no_route_is_cheaper_and_none_is_missed(wish, candidates):
    route, best = plan(wish, candidates), cheapest(wish, candidates)
    assert (route is None) == (best is None)
    if route is not None:
        assert route.step_seconds == pytest.approx(best[0])
        if best[1] == MIXED or wish.drift_class == best[1]:
            assert route.drift_class == best[1]


@settings(max_examples=400)
@given(WISHES, st.lists(candidates_of(), max_size=6))
def test_a_route_is_what_it_says(wish, candidates):
    """Whole, in order, from those who may and can, with one embedding in front and one head at the end."""
    route = plan(wish, candidates)
    if route is None:
        return
    stages = route.stages
    assert [block for stage in stages for block in stage.blocks or ()] == list(range(BLOCKS))
    assert [index for index, stage in enumerate(stages) if stage.embedding] == [0]
    assert [index for index, stage in enumerate(stages) if stage.head] == [len(stages) - 1]
    for stage in stages:
        can = [each for each in candidates if each.peer == stage.peer and usable(wish, each)]
        if stage.blocks is not None:
            covers = [each for each in can if stage.blocks.is_covered_by([each.offer.blocks])]
            assert [each for each in covers if route.drift_class in (MIXED, each.offer.drift_class)]
        if stage.embedding or stage.head:
            assert [each for each in can if each.offer.embedding >= stage.embedding and each.offer.head >= stage.head]
            assert wish.boomerang in (None, stage.peer)
    if wish.coordinator is not None and wish.boomerang is None:
        assert route.coordinator == wish.coordinator


@given(WISHES, st.lists(candidates_of(), max_size=6), st.randoms())
def test_the_order_in_which_peers_are_told_changes_nothing(wish, candidates, random):
    shuffled = random.sample(candidates, len(candidates))
    one, other = plan(wish, candidates), plan(wish, shuffled)
    assert (one is None) == (other is None)
    if one is not None:
        assert one.step_seconds == other.step_seconds
        if len({(each.round_trip, each.peer, each.offer.blocks) for each in candidates}) == len(candidates):
            assert one == other


@given(st.lists(candidates_of(), min_size=1, max_size=6), st.integers(0, 5))
def test_who_is_taken_away_and_was_not_used_is_not_missed(candidates, index):
    wish = attrs.evolve(WISH, tokens=1)
    route = plan(wish, candidates)
    if route is not None and (idle := {each.peer for each in candidates} - route.peers):
        without = [each for each in candidates if each.peer != sorted(idle)[index % len(idle)]]
        assert plan(wish, without).step_seconds == pytest.approx(route.step_seconds)


# By example


def test_a_peer_that_is_slow_but_near_is_left_when_it_costs_more_than_the_way():
    near, far = candidate("near", 0, 5, round_trip=0.001), candidate("far", 0, 5, round_trip=0.06, block_seconds=0.001)
    assert plan_route(attrs.evolve(WISH, prompt_tokens=0), [near, far]).coordinator == "near"
    slow = attrs.evolve(near, offer=attrs.evolve(near.offer, block_seconds=0.02))
    assert plan_route(attrs.evolve(WISH, prompt_tokens=0), [slow, far]).coordinator == "far"


def test_a_long_prompt_is_for_who_reads_fast_and_a_long_answer_for_who_writes_fast():
    reads = candidate("reads", 0, 5, block_seconds=0.02, prefill_seconds=0.0001)
    writes = candidate("writes", 0, 5, block_seconds=0.01, prefill_seconds=0.002)
    long_prompt = attrs.evolve(WISH, prompt_tokens=2000, answer_tokens=10)
    assert plan_route(long_prompt, [reads, writes]).coordinator == "reads"
    assert plan_route(attrs.evolve(WISH, prompt_tokens=10, answer_tokens=2000), [reads, writes]).coordinator == "writes"


def test_who_is_busy_is_left_to_its_work():
    busy = candidate("busy", 0, 5, sessions=3)
    assert plan_route(WISH, [busy, candidate("idle", 0, 5, block_seconds=0.015)]).coordinator == "idle"


def test_one_drift_class_is_kept_to_though_a_mixed_route_were_cheaper():
    mixed = [candidate("a", 0, 3), candidate("b", 3, 5, drift_class="y")]
    whole = candidate("slow", 0, 5, block_seconds=0.1, drift_class="z")
    assert plan_route(WISH, [*mixed, whole]).peers == {"slow"}
    route = plan_route(WISH, mixed)
    assert (route.drift_class, route.peers) == (MIXED, {"a", "b"})
    assert "mixed drift classes" in route.reason


def test_a_session_stays_in_its_class():
    first, second = candidate("first", 0, 5, block_seconds=0.05), candidate("second", 0, 5, drift_class="y")
    assert plan_route(WISH, [first, second]).coordinator == "second"
    assert plan_route(attrs.evolve(WISH, drift_class="x"), [first, second]).coordinator == "first"


def test_a_border_that_spares_nothing_is_not_made():
    """Its own blocks cost a node no visit, so nothing but the border's price keeps it from cutting them up."""
    route = plan_route(attrs.evolve(WISH, coordinator=PeerId("a")), [candidate("a", 0, 5, round_trip=0.0)])
    assert route.stages == (Stage(PeerId("a"), BlockRange(0, 5), embedding=True, head=True),)


def test_weights_of_another_manifest_are_no_candidates_whatever_they_are_called():
    other = [candidate("b", 0, 5, model=ModelId("other")), candidate("c", 0, 5, count=6)]
    with pytest.raises(NoRoute, match="0:5"):
        plan_route(WISH, other)
    assert plan_route(WISH, [*other, candidate("a", 0, 5, block_seconds=9.0)]).coordinator == "a"


MISSING = {
    "nobody": ([], "0:5"),
    "a hole": ([candidate("a", 0, 2), candidate("b", 4, 5)], "2:4"),
    "two holes": ([candidate("a", 1, 2), candidate("b", 3, 4)], "0:1, 2:3, 4:5"),
    "no embedding": ([candidate("a", 0, 5, embedding=False)], "embedding"),
    "no head": ([candidate("a", 0, 5, head=False)], "head"),
    "no room": ([candidate("a", 0, 5, free_tokens=49)], "0:5"),
    "barred": ([candidate("bad", 0, 5)], "0:5"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named(what):
    candidates, words = MISSING[what]
    with pytest.raises(NoRoute, match=words):
        plan_route(attrs.evolve(WISH, barred=frozenset({PeerId("bad")})), candidates)


def test_both_ends_stay_with_the_asker_who_wants_that():
    here = candidate("here", 0, 1, embedding=True, head=True, round_trip=0.0)
    wish = attrs.evolve(WISH, boomerang=PeerId("here"))
    route = plan_route(wish, [here, candidate("there", 1, 5)])
    assert [(stage.peer, stage.embedding, stage.head) for stage in route.stages] == [
        ("here", True, False),
        ("there", False, False),
        ("here", False, True),
    ]
    for half in ({"embedding": False}, {"head": False}):
        crippled = attrs.evolve(here, offer=attrs.evolve(here.offer, **half))
        with pytest.raises(NoRoute, match="must stay on this node"):
            plan_route(wish, [crippled, candidate("there", 0, 5)])


# Offers are others' word


NONSENSE = {
    "time that is no number": {"block_seconds": math.nan},
    "endless time": {"prefill_seconds": math.inf},
    "negative time": {"block_seconds": -1.0},
    "more blocks than the model": {"block_count": 4},
    "a model without end": {"block_count": 10**12},
    "negative room": {"free_tokens": -1},
    "rows of nothing less": {"hidden_size": -8},
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_offer_that_cannot_be_is_none(what):
    with pytest.raises(ValueError, match="blocks"):
        offer(0, 5, **NONSENSE[what])


@given(st.floats(0, 1e-9), st.floats(0, 1e-9))
@example(0.0, 0.0)
def test_no_offer_makes_itself_free(block, prefill):
    route = plan_route(WISH, [candidate("a", 0, 5, block_seconds=block, prefill_seconds=prefill)])
    assert route.step_seconds > VISIT


def test_a_thousand_peers_and_eighty_blocks_are_planned():
    random = Random(0)

    def one(number):
        begin = random.randrange(80)
        return candidate(f"peer{number}", begin, min(80, begin + random.randrange(4, 24)), count=80,
                         round_trip=random.uniform(1e-3, 0.2), block_seconds=random.uniform(1e-4, 5e-3))  # fmt: skip

    candidates = [one(number) for number in range(1000)]
    wish = attrs.evolve(WISH, block_count=80)
    route = plan_route(wish, candidates)
    assert [block for stage in route.stages for block in stage.blocks] == list(range(80))
    assert plan_route(wish, random.sample(candidates, 1000)) == route
    by_peer = {each.peer: each for each in candidates}
    path = [(by_peer[stage.peer], stage.blocks) for stage in route.stages]
    assert route.step_seconds == pytest.approx(seconds(wish, path))


# Privacy


@pytest.mark.parametrize(("rule", "seen_by"), [
    (Privacy.ANYONE, {"stranger", "lan", "pool", "both"}),
    (Privacy.POOL_AND_LAN, {"lan", "pool", "both"}),
    (Privacy.THIS_NODE_ONLY, set()),
])  # fmt: skip
def test_a_rule_says_who_may_see_a_request(rule, seen_by):
    peers = {
        "stranger": PeerInfo(PeerId("s"), Liveness.ALIVE, connected=True),
        "lan": PeerInfo(PeerId("l"), Liveness.ALIVE, connected=True, lan=True),
        "pool": PeerInfo(PeerId("p"), Liveness.ALIVE, connected=True, relayed=True, pool=True),
        "both": PeerInfo(PeerId("b"), Liveness.ALIVE, connected=True, lan=True, pool=True),
    }
    assert {name for name, peer in peers.items() if may_see(peer, rule)} == seen_by


@pytest.mark.parametrize(("one", "other"), list(itertools.product(Privacy, Privacy)))
def test_of_two_rules_both_hold(one, other):
    peers = [PeerInfo(PeerId("p"), Liveness.ALIVE, connected=True, lan=lan, pool=pool)
             for lan in (False, True) for pool in (False, True)]  # fmt: skip
    for peer in peers:
        assert may_see(peer, stricter(one, other)) == (may_see(peer, one) and may_see(peer, other))


def test_a_rule_of_another_version_is_taken_as_the_strictest():
    assert [privacy_of(rule.value) for rule in Privacy] == list(Privacy)
    assert privacy_of("friends_of_friends") is Privacy.THIS_NODE_ONLY
