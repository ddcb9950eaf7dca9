"""The plan of a transfer: every chunk once, from somebody who has it, the rarest shard first, whatever fails."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from meshnode.files.chunk_plan import ChunkPlan, Run
from meshnode.types.ids import PeerId, ShardId

PEERS = tuple(map(PeerId, "abcd"))


def plan_of(holders, missing, run=8):
    return ChunkPlan({ShardId(key): frozenset(map(PeerId, who)) for key, who in holders.items()}, missing, run)


def test_the_shard_that_the_fewest_hold_comes_first():
    plan = plan_of({"x": "ab", "y": "a", "z": "abc"}, {"x": {0}, "y": {0}, "z": {0}})
    assert [plan.next("a"), plan.next("a"), plan.next("a"), plan.next("a")] == [
        Run("y", 0, 1), Run("x", 0, 1), Run("z", 0, 1), None,
    ]  # fmt: skip


def test_runs_are_consecutive_and_short():
    plan = plan_of({"x": "a"}, {"x": {0, 1, 2, 5, 6, 7, 8, 9}}, run=3)
    runs = [plan.next("a") for _ in range(4)]
    assert runs == [Run("x", 0, 3), Run("x", 5, 3), Run("x", 8, 2), None]
    assert plan.is_done
    plan.give_back(runs[1], {5})
    assert plan.next("a") == Run("x", 6, 2)


def test_the_last_chunk_of_a_slow_run_is_raced_for_by_one_at_a_time_who_has_it():
    plan = plan_of({"x": "ab", "y": "ac"}, {"x": {0, 1, 2}, "y": {0}})
    x, y = plan.next("b"), plan.next("a")
    held = {"x": {2}, "y": set()}
    assert plan.race("b", [y], [x], held.get) is None
    assert plan.race("a", [], [x], held.get) is None
    race = plan.race("a", [x], [y], held.get)
    assert race == Run("x", 1, 1)
    assert plan.race("a", [x], [race], held.get) == Run("x", 0, 1)
    assert plan.race("a", [x, race], [], held.get) == race
    plan.give_back(x, {2}, [race])
    assert plan.missing == {"x": {0}, "y": set()}


@given(
    shards=st.dictionaries(
        st.sampled_from("uvwxyz"),
        st.tuples(st.sets(st.sampled_from(PEERS), min_size=1), st.sets(st.integers(0, 40))),
        min_size=1,
    ),
    seed=st.integers(0, 1000),
)
def test_every_chunk_comes_once_from_somebody_who_has_it_whatever_fails(shards, seed):
    rng = Random(seed)
    plan = plan_of(
        {key: who for key, (who, _) in shards.items()}, {key: set(left) for key, (_, left) in shards.items()}
    )
    held = {key: set() for key in shards}
    asked = []
    idle = 0
    while idle < 200 and not (plan.is_done and not asked):
        peer = rng.choice(PEERS)
        run = plan.next(peer) if rng.random() < 0.6 else None
        if run is not None:
            assert peer in plan.holders[run.shard]
            chunks = set(range(run.first, run.first + run.count))
            assert not chunks & held[run.shard]
            assert all(
                chunks.isdisjoint(range(other.first, other.first + other.count))
                for other in asked
                if other.shard == run.shard
            )
            asked.append(run)
            idle = 0
            continue
        idle += not asked
        if asked:
            run = asked.pop(rng.randrange(len(asked)))
            brought = range(run.first, run.first + rng.randint(0, run.count))
            held[run.shard].update(brought)
            plan.give_back(run, held[run.shard])
    assert plan.is_done
    assert held == {key: left for key, (_, left) in shards.items()}
