"""The supervised children in start order, and the policy of each. They stop in reverse: last in, first out."""

from collections.abc import Callable

import attrs

from meshnode.supervise.subsystem import ChildSpec, Criticality, Pulse, RestartPolicy, Subsystem

__all__ = ["Builders", "NetworkBuilders", "child_specs"]

CRITICAL, NON_CRITICAL = Criticality.CRITICAL, Criticality.NON_CRITICAL


@attrs.frozen(eq=False)
class NetworkBuilders:
    """Those of a node that has peers."""

    manager: Callable[[Pulse], Subsystem]
    dispatcher: Callable[[Pulse], Subsystem]
    monitor: Callable[[Pulse], Subsystem]
    rebalancer: Callable[[Pulse], Subsystem]


@attrs.frozen(eq=False)
class Builders:
    """One per child: given its pulse it makes a fresh incarnation."""

    network: NetworkBuilders | None  # None: a node without peers
    acquisition: Callable[[Pulse], Subsystem]
    router: Callable[[Pulse], Subsystem]
    keeper: Callable[[], Subsystem]
    placement: Callable[[Pulse], Subsystem] | None  # None: a node without peers
    api: Callable[[Pulse], Subsystem]
    watcher: Callable[[Pulse], Subsystem] | None = None  # None: the hub is not looked at
    updates: Callable[[Pulse], Subsystem] | None = None  # None: off, or offline


def child_specs(builders: Builders, *, api_drain: float) -> tuple[ChildSpec, ...]:
    """Return the table. `api_drain` is how long open streams may take to finish, in seconds."""
    acquisition, router, api = Pulse(), Pulse(), Pulse()
    return (
        *(() if builders.network is None else _network_specs(builders.network)),
        ChildSpec(
            "AcquisitionManager",
            lambda: builders.acquisition(acquisition),
            NON_CRITICAL,  # what is on disk is served without it
            RestartPolicy(max_restarts=5, period=60.0),
            stop_timeout=5.0,
            pulse=acquisition,
        ),
        ChildSpec(
            "InferenceRouter",
            lambda: builders.router(router),
            CRITICAL,
            RestartPolicy(max_restarts=3, period=60.0),
            drain_timeout=10.0,  # finish sessions
            stop_timeout=5.0,  # end the workers
            pulse=router,
        ),
        ChildSpec(
            "ModelKeeper",
            builders.keeper,
            NON_CRITICAL,  # models are loaded on demand without it
            RestartPolicy(max_restarts=3, period=60.0),
            stop_timeout=2.0,
        ),
        *(() if builders.network is None or builders.placement is None else _placement_specs(builders)),
        *(() if builders.watcher is None else _watcher_specs(builders.watcher)),
        *(() if builders.updates is None else _update_specs(builders.updates)),
        ChildSpec(
            "ApiServer",
            lambda: builders.api(api),
            CRITICAL,
            RestartPolicy(max_restarts=3, period=60.0),
            drain_timeout=api_drain,  # last in, first out: streams finish while everything they need still runs
            stop_timeout=5.0,
            pulse=api,
        ),
    )


def _network_specs(builders: NetworkBuilders) -> tuple[ChildSpec, ...]:
    network, dispatcher, monitor = Pulse(), Pulse(), Pulse()
    return (
        ChildSpec(
            "NetworkManager",
            lambda: builders.manager(network),
            CRITICAL,  # a crash of libp2p comes up here
            RestartPolicy(max_restarts=5, period=120.0),
            drain_timeout=1.0,
            stop_timeout=5.0,
            pulse=network,
        ),
        ChildSpec(
            "MessageDispatcher",
            lambda: builders.dispatcher(dispatcher),
            CRITICAL,
            RestartPolicy(max_restarts=5, period=60.0),
            stop_timeout=2.0,
            pulse=dispatcher,
        ),
        ChildSpec(
            "HealthMonitor",
            lambda: builders.monitor(monitor),
            NON_CRITICAL,  # links notice silence themselves
            RestartPolicy(max_restarts=5, period=60.0),
            stop_timeout=2.0,
            pulse=monitor,
        ),
    )


def _update_specs(build: Callable[[Pulse], Subsystem]) -> tuple[ChildSpec, ...]:
    updates = Pulse()
    return (
        ChildSpec(
            "UpdateChecker",
            lambda: build(updates),
            NON_CRITICAL,  # the version that runs goes on running
            RestartPolicy(max_restarts=3, period=600.0),
            stop_timeout=2.0,
            pulse=updates,
        ),
    )


def _placement_specs(builders: Builders) -> tuple[ChildSpec, ...]:
    network, build = builders.network, builders.placement
    assert network is not None
    assert build is not None
    rebalancer, placement = Pulse(), Pulse()
    return (
        ChildSpec(
            "ShardRebalancer",
            lambda: network.rebalancer(rebalancer),
            NON_CRITICAL,  # shards are looked at every few minutes without it
            RestartPolicy(max_restarts=3, period=60.0),
            stop_timeout=2.0,
            pulse=rebalancer,
        ),
        ChildSpec(
            "AutoShardManager",
            lambda: build(placement),
            NON_CRITICAL,  # what is held is served without it
            RestartPolicy(max_restarts=3, period=60.0),
            stop_timeout=2.0,
            pulse=placement,
        ),
    )


def _watcher_specs(build: Callable[[Pulse], Subsystem]) -> tuple[ChildSpec, ...]:
    pulse = Pulse()
    return (
        ChildSpec(
            "HfWatcher",
            lambda: build(pulse),
            NON_CRITICAL,  # the wishlist is shorter without it
            RestartPolicy(max_restarts=3, period=600.0),
            stop_timeout=2.0,
            pulse=pulse,
        ),
    )
