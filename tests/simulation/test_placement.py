"""A short day of a small mesh; `nox -s placement` plays long days of a large one."""

import pytest

from meshnode.placement.view import MeshState
from simulation.placement import Day, World


@pytest.mark.parametrize("seed", range(3))
def test_what_is_wanted_is_served_while_members_come_and_go_and_little_moves(seed):
    report = Day(World(nodes=60, models=12, hours=6), seed).run()
    assert report.missed() == []


def test_what_the_simulation_keeps_is_what_a_node_would_compute():
    day = Day(World(nodes=30, models=6, hours=2), 1)
    day.run()
    kept, computed = day.state(), MeshState(day.state().members, day.models)
    assert {segment: set(who) for segment, who in kept.holders.items()} == {
        segment: set(who) for segment, who in computed.holders.items()
    }
    assert {peer: kept.free[peer] for peer in computed.free} == dict(computed.free)
