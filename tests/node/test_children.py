"""The table of children: order, criticality and budgets, as docs/architecture.md has them."""

import pytest

from meshnode.node.children import Builders, child_specs
from meshnode.supervise.subsystem import Criticality, Pulse


@pytest.fixture
def specs():
    return child_specs(
        Builders(
            acquisition=lambda pulse: ("acquisition", pulse),
            router=lambda pulse: ("router", pulse),
            keeper=lambda: "keeper",
            api=lambda pulse: ("api", pulse),
        ),
        api_drain=7.0,
    )


def test_the_api_starts_last_and_so_stops_first(specs):
    assert [spec.name for spec in specs] == ["AcquisitionManager", "InferenceRouter", "ModelKeeper", "ApiServer"]


def test_what_answers_requests_is_critical_and_has_a_pulse(specs):
    critical = {spec.name for spec in specs if spec.criticality is Criticality.CRITICAL}
    assert critical == {"InferenceRouter", "ApiServer"}
    assert all(isinstance(spec.pulse, Pulse) for spec in specs if spec.name in critical)


def test_every_child_has_its_own_pulse_and_is_built_with_it(specs):
    by_name = {spec.name: spec for spec in specs}
    for name, built in (("AcquisitionManager", "acquisition"), ("InferenceRouter", "router"), ("ApiServer", "api")):
        assert by_name[name].build() == (built, by_name[name].pulse)
    assert by_name["ModelKeeper"].build() == "keeper"
    assert len({id(spec.pulse) for spec in specs}) == len(specs)


def test_the_router_restarts_its_workers_too_and_both_budgets_together_stay_small(specs):
    router = next(spec for spec in specs if spec.name == "InferenceRouter")
    assert router.restart.max_restarts * 3 <= 15


def test_streams_have_the_configured_time_to_finish(specs):
    assert specs[-1].drain_timeout == 7.0
