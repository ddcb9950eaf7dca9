"""Alive is not working: silence is told from rest, and only critical silence is withheld from the service manager."""

import trio

from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, Criticality, Pulse, RestartPolicy, Status
from meshnode.supervise.supervisor import Supervisor


class Silent:
    """Starts and never touches its pulse."""

    async def run(self, *, task_status):
        task_status.started()
        await trio.sleep_forever()

    async def drain(self):
        pass


async def test_only_a_critical_silence_stops_the_beat(autojump_clock):
    critical, other = Pulse(), Pulse()
    supervisor = Supervisor(
        (
            ChildSpec("a", Silent, Criticality.CRITICAL, pulse=critical, pulse_limit=10.0),
            ChildSpec("b", Silent, pulse=other, pulse_limit=5.0),
            ChildSpec("c", Silent, Criticality.CRITICAL),
        ),
        health=HealthBoard(),
    )
    assert supervisor.critical_pulses_beat()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(9)
        assert supervisor.critical_pulses_beat()
        await trio.sleep(2)
        assert not supervisor.critical_pulses_beat()
        critical.touch()
        assert supervisor.critical_pulses_beat()
        supervisor.request_stop()


async def test_a_new_incarnation_begins_with_a_fresh_pulse(autojump_clock):
    pulse = Pulse()
    health = HealthBoard()
    policy = RestartPolicy(backoff_initial=1.0)
    supervisor = Supervisor(
        (ChildSpec("a", Silent, Criticality.CRITICAL, policy, pulse=pulse, pulse_limit=10.0),), health=health
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(30)
        assert [condition.code for condition in health.conditions()] == ["pulse_silent"]
        await trio.sleep(5)
        (state,) = supervisor.states()
        assert (state.status, state.restarts, state.is_ready) == (Status.RUNNING, 1, True)
        assert supervisor.critical_pulses_beat()
        assert health.conditions() == ()
        supervisor.request_stop()


async def test_while_a_child_restarts_the_supervisor_vouches_for_it(autojump_clock):
    policy = RestartPolicy(backoff_initial=100.0, backoff_max=100.0)
    spec = ChildSpec("a", Silent, Criticality.CRITICAL, policy, pulse=Pulse(), pulse_limit=1.0)
    supervisor = Supervisor((spec,), health=HealthBoard())
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(20)
        assert supervisor.states()[0].status is Status.BACKING_OFF
        assert supervisor.critical_pulses_beat()
        supervisor.request_stop()
