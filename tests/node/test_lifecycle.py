"""The service manager hears what is true: ready after the start, alive while the critical pulses beat, stopping at once."""

import signal

import attrs
import pytest
import structlog
import trio

from meshnode.node.lifecycle import Restart, run_tree
from meshnode.node.notify import ServiceManager
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, Criticality, Pulse, RestartPolicy, SubsystemFailed
from meshnode.supervise.supervisor import Supervisor


@attrs.frozen
class Recorder(ServiceManager):
    heard: list = attrs.field(factory=list)

    def _send(self, message):
        self.heard.append((trio.current_time(), message))

    def times(self, message):
        return [at for at, heard in self.heard if heard.startswith(message)]


class Slow:
    starts_after, drain_seconds, crashes_after = 3.0, 4.0, None

    async def run(self, *, task_status):
        await trio.sleep(self.starts_after)
        task_status.started()
        if self.crashes_after is None:
            await trio.sleep_forever()
        await trio.sleep(self.crashes_after)
        raise ValueError("sick")

    async def drain(self):
        await trio.sleep(self.drain_seconds)


async def _signals(*times):
    for at in times:
        await trio.sleep_until(at)
        yield signal.SIGTERM
    await trio.sleep_forever()


async def _run(spec, manager, *signal_times):
    health = HealthBoard()
    await run_tree(
        Supervisor((spec,), health=health), health, manager, url="http://here", signals=_signals(*signal_times)
    )


async def test_ready_comes_after_the_start_and_stopping_with_the_signal(autojump_clock):
    manager = Recorder(watchdog_interval=3.0)
    await _run(ChildSpec("a", Slow, drain_timeout=10.0), manager, 8)
    assert manager.times("READY=1\nSTATUS=serving on http://here") == [3]
    assert manager.times("WATCHDOG=1") == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert manager.times("STOPPING=1") == [8]
    assert trio.current_time() == 12


async def _restart(manager, *signal_times):
    """Ask for a restart at 8 s, and return whether it is still wanted at the end."""
    health = HealthBoard()
    supervisor = Supervisor((ChildSpec("a", Slow, drain_timeout=10.0),), health=health)
    restart = Restart(supervisor)

    async def ask():
        await trio.sleep(8)
        restart.request()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await run_tree(supervisor, health, manager, url="http://here", signals=_signals(*signal_times), restart=restart)
    return restart.wanted


async def test_a_restart_drains_as_a_stop_does_and_is_no_end_to_the_manager(autojump_clock):
    manager = Recorder(watchdog_interval=3.0)
    assert await _restart(manager)
    assert manager.times("RELOADING=1\nMONOTONIC_USEC=") == [8]
    assert manager.times("STOPPING=1") == []
    assert trio.current_time() == 12


async def test_a_signal_while_it_restarts_means_the_end(autojump_clock):
    assert not await _restart(Recorder(), 9)


async def test_the_second_signal_ends_draining(autojump_clock):
    manager = Recorder()
    await _run(ChildSpec("a", Slow, drain_timeout=10.0), manager, 8, 9)
    assert trio.current_time() == 9


async def test_a_signal_before_the_node_is_ready_stops_the_start(autojump_clock):
    manager = Recorder()
    await _run(ChildSpec("a", Slow, drain_timeout=10.0), manager, 1)
    assert [message for _, message in manager.heard] == ["STOPPING=1\nSTATUS=stopping"]
    assert trio.current_time() == 1


async def test_the_watchdog_is_not_fed_while_a_critical_pulse_is_silent(autojump_clock):
    manager, pulse = Recorder(watchdog_interval=30.0), Pulse()
    spec = ChildSpec("a", Slow, Criticality.CRITICAL, pulse=pulse, pulse_limit=60.0)
    with structlog.testing.capture_logs() as logs:
        await _run(spec, manager, 130)
    assert manager.times("WATCHDOG=1") == [3, 13, 23, 33, 43, 53, 63]
    assert "degraded: a has been silent" in manager.heard[-2][1]
    assert [log["event"] for log in logs].count(
        "a critical subsystem is silent; the service manager hears no more of us until it works"
    ) == 1


async def test_conditions_become_the_status_while_they_last(autojump_clock):
    class Sick(Slow):
        starts_after, crashes_after = 0.0, 7.0

    manager = Recorder()
    await _run(ChildSpec("a", Sick, restart=RestartPolicy(max_restarts=0), cooldown=10.0), manager, 21)
    states = [(at, message) for at, message in manager.heard if message.startswith("STATUS=")]
    assert states == [
        (10, "STATUS=degraded: a keeps crashing (ValueError: sick); it tries again in 10 s"),
        (20, "STATUS=serving on http://here"),
    ]


async def test_the_failure_of_the_tree_is_announced_and_raised(autojump_clock):
    class Sick(Slow):
        crashes_after = 1.0

    manager = Recorder()
    with pytest.raises(ExceptionGroup) as caught:
        await _run(ChildSpec("a", Sick, Criticality.CRITICAL, RestartPolicy(max_restarts=0)), manager)
    assert caught.group_contains(SubsystemFailed)
    assert manager.times("STOPPING=1") == [4]
