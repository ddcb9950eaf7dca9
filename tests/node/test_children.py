"""The table of children: order, criticality and budgets, as docs/architecture.md has them."""

import random

import pytest
import trio

from meshnode.node.children import Builders, NetworkBuilders, child_specs
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Criticality, Pulse, Status
from meshnode.supervise.supervisor import Supervisor
from meshnode.supervise.watchdog import ShutdownWatchdog

NETWORK = NetworkBuilders(
    manager=lambda pulse: ("manager", pulse),
    dispatcher=lambda pulse: ("dispatcher", pulse),
    monitor=lambda pulse: ("monitor", pulse),
    rebalancer=lambda pulse: ("rebalancer", pulse),
)


@pytest.fixture(params=[None, NETWORK], ids=["solitary", "mesh"])
def network(request):
    return request.param


@pytest.fixture
def specs(network):
    return child_specs(
        Builders(
            network=network,
            acquisition=lambda pulse: ("acquisition", pulse),
            router=lambda pulse: ("router", pulse),
            keeper=lambda: "keeper",
            placement=lambda pulse: ("placement", pulse),
            api=lambda pulse: ("api", pulse),
            watcher=None if network is None else lambda pulse: ("watcher", pulse),
        ),
        api_drain=7.0,
    )


OWN = ["AcquisitionManager", "InferenceRouter", "ModelKeeper"]
MESH = ["NetworkManager", "MessageDispatcher", "HealthMonitor"]
PLACEMENT = ["ShardRebalancer", "AutoShardManager", "HfWatcher"]


def test_the_api_starts_last_and_so_stops_first(specs, network):
    names = [spec.name for spec in specs]
    assert names == [*OWN, "ApiServer"] if network is None else [*MESH, *OWN, *PLACEMENT, "ApiServer"]


def test_updates_are_looked_for_after_everything_that_works_and_only_where_they_are_on():
    builders = Builders(NETWORK, *[lambda *pulse: pulse] * 6, updates=lambda pulse: ("updates", pulse))
    specs = child_specs(builders, api_drain=7.0)
    assert [spec.name for spec in specs[:-2]] == [*MESH, *OWN, *PLACEMENT]
    assert [spec.name for spec in specs[-2:]] == ["UpdateChecker", "ApiServer"]
    updates = specs[-2]
    assert updates.criticality is Criticality.NON_CRITICAL
    assert (updates.restart.max_restarts, updates.restart.period, updates.stop_timeout) == (3, 600.0, 2.0)
    assert updates.build() == ("updates", updates.pulse)


def test_what_answers_requests_is_critical_and_has_a_pulse(specs, network):
    critical = {spec.name for spec in specs if spec.criticality is Criticality.CRITICAL}
    answering = {"InferenceRouter", "ApiServer"}
    assert critical == (answering if network is None else {*answering, "NetworkManager", "MessageDispatcher"})
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


class Sluggish:
    """Drains for ever, and takes nearly all of its time to stop."""

    def __init__(self, pulse=None):
        self.pulse = pulse

    async def run(self, *, task_status):
        task_status.started()
        try:
            while True:
                if self.pulse is not None:
                    self.pulse.touch()
                await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.9)

    async def drain(self):
        await trio.sleep_forever()


class Timed:
    """A watchdog that only remembers when it was armed."""

    def arm(self):
        self.at = trio.current_time()


async def test_a_stop_that_takes_all_its_time_is_over_before_the_watchdog_takes_it_for_stuck(autojump_clock):
    network = NetworkBuilders(Sluggish, Sluggish, Sluggish, Sluggish)
    builders = Builders(network, *[Sluggish] * 7)
    watchdog = Timed()
    supervisor = Supervisor(
        child_specs(builders, api_drain=25.0), health=HealthBoard(), rng=random.Random(0), watchdog=watchdog
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.request_stop()
    assert 25.0 <= trio.current_time() - watchdog.at < ShutdownWatchdog().seconds
    assert {state.status for state in supervisor.states()} == {Status.STOPPED}
