"""How a tree comes down: in order, within its times, whatever crashes or hangs on the way. All in virtual time."""

import random

import pytest
import structlog
import trio

from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec, Criticality, RestartPolicy, Status, SubsystemFailed
from meshnode.supervise.supervisor import Supervisor

CRITICAL = Criticality.CRITICAL
NO_RESTART = RestartPolicy(max_restarts=0)


class Child:
    """A subsystem that does what it was told, and remembers when."""

    def __init__(self, name, diary, *, starts_after=0.0, crashes_after=None, drain_seconds=0.0):
        self.name, self.diary = name, diary
        self.starts_after, self.crashes_after, self.drain_seconds = starts_after, crashes_after, drain_seconds

    def note(self, what):
        self.diary.append((round(trio.current_time(), 2), f"{self.name} {what}"))

    async def run(self, *, task_status):
        self.note("begins")
        try:
            await trio.sleep(self.starts_after)
            task_status.started()
            if self.crashes_after is None:
                await trio.sleep_forever()
            await trio.sleep(self.crashes_after)
            raise RuntimeError("boom")
        finally:
            self.note("ends")

    async def drain(self):
        self.note("drains")
        await trio.sleep(self.drain_seconds)
        self.note("has drained")


class Armed:
    """A watchdog that only remembers when it was armed."""

    def __init__(self):
        self.at = None

    def arm(self):
        self.at = trio.current_time()


def make(*specs, **options):
    return Supervisor(specs, health=HealthBoard(), rng=random.Random(0), **options)


def states(supervisor):
    return {state.name: state.status for state in supervisor.states()}


async def start_and_stop(supervisor, after):
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(after)
        supervisor.request_stop()


async def test_a_stop_during_the_boot_does_not_wait_for_the_start(autojump_clock):
    diary = []
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary)),
        ChildSpec("b", lambda: Child("b", diary, starts_after=29.0)),
        ChildSpec("c", lambda: Child("c", diary)),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        supervisor.request_stop()
    assert diary == [(0, "a begins"), (0, "b begins"), (1, "b ends"), (1, "a ends")]
    assert states(supervisor) == {"a": Status.STOPPED, "b": Status.STOPPED, "c": Status.WAITING}


async def test_cancellation_during_the_boot_does_not_wait_for_the_start(autojump_clock):
    diary = []
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary)), ChildSpec("b", lambda: Child("b", diary, starts_after=29.0))
    )
    with trio.move_on_after(1) as scope:
        await supervisor.run()
    assert scope.cancelled_caught
    assert diary[-2:] == [(1, "b ends"), (1, "a ends")]


async def test_a_stop_that_was_asked_for_before_the_run_starts_nothing(autojump_clock):
    diary = []
    supervisor = make(ChildSpec("a", lambda: Child("a", diary)))
    supervisor.request_stop()
    await supervisor.run()
    assert diary == []


async def test_a_second_request_ends_all_draining(autojump_clock):
    diary = []
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary, drain_seconds=9.0), drain_timeout=10.0),
        ChildSpec("b", lambda: Child("b", diary, drain_seconds=9.0), drain_timeout=10.0),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.request_stop()
        await trio.sleep(2)
        supervisor.request_stop()
    assert diary[2:] == [(0, "b drains"), (2, "b ends"), (2, "a ends")]


async def test_what_crashes_while_another_drains_is_neither_restarted_nor_a_failure(autojump_clock):
    diary = []
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary, crashes_after=3.0), CRITICAL, NO_RESTART),
        ChildSpec("b", lambda: Child("b", diary, drain_seconds=8.0), drain_timeout=10.0),
    )
    await start_and_stop(supervisor, 1)
    assert [what for _, what in diary].count("a begins") == 1
    assert diary[-1] == (9, "b ends")
    assert states(supervisor) == {"a": Status.STOPPED, "b": Status.STOPPED}


async def test_a_crash_while_draining_ends_the_drain(autojump_clock):
    diary = []
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary, crashes_after=3.0, drain_seconds=8.0), drain_timeout=10.0)
    )
    await start_and_stop(supervisor, 1)
    assert diary[-1] == (3, "a ends")
    assert trio.current_time() == 3


async def test_what_crashes_while_the_tree_fails_does_not_replace_the_cause(autojump_clock):
    diary = []
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary, crashes_after=4.0), CRITICAL, NO_RESTART),
        ChildSpec("b", lambda: Child("b", diary, crashes_after=2.0), CRITICAL, NO_RESTART),
        ChildSpec("c", lambda: Child("c", diary, drain_seconds=8.0), drain_timeout=10.0),
    )
    with pytest.raises(SubsystemFailed, match="b crashed"):
        await supervisor.run()
    assert trio.current_time() == 10
    assert states(supervisor) == {"a": Status.STOPPED, "b": Status.FAILED, "c": Status.STOPPED}


async def test_a_child_that_backs_off_is_not_started_again_while_others_drain(autojump_clock):
    diary = []
    policy = RestartPolicy(backoff_initial=4.0)
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary, crashes_after=0.5), restart=policy),
        ChildSpec("b", lambda: Child("b", diary, drain_seconds=8.0), drain_timeout=10.0),
    )
    await start_and_stop(supervisor, 1)
    assert [what for _, what in diary].count("a begins") == 1


async def test_a_subsystem_may_return_by_itself_once_it_has_drained(autojump_clock):
    class Polite:
        def __init__(self):
            self.gone = trio.Event()

        async def run(self, *, task_status):
            task_status.started()
            await self.gone.wait()

        async def drain(self):
            self.gone.set()
            await trio.sleep(1)

    supervisor = make(ChildSpec("a", Polite, CRITICAL, drain_timeout=5.0))
    with structlog.testing.capture_logs() as logs:
        await start_and_stop(supervisor, 1)
    assert trio.current_time() == 2
    assert logs == []


@pytest.mark.parametrize("criticality", Criticality)
async def test_a_cleanup_error_beside_a_cancellation_is_logged_and_dropped(autojump_clock, criticality):
    """Trio gives a mixed group of Cancelled and the error; only the scope that cancelled can tell them apart."""

    class Careless:
        async def run(self, *, task_status):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(self._fail_at_the_end)
                task_status.started()

        async def _fail_at_the_end(self):
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                raise BaseExceptionGroup("mixed", [cancelled, KeyError("cleanup")]) from None

        async def drain(self):
            pass

    supervisor = make(ChildSpec("a", Careless, criticality, NO_RESTART))
    with structlog.testing.capture_logs() as logs:
        await start_and_stop(supervisor, 1)
    assert [(log["event"], log["subsystem"], log["error"]) for log in logs] == [
        ("error while stopping", "a", "KeyError: 'cleanup'")
    ]
    assert states(supervisor) == {"a": Status.STOPPED}


async def test_a_stuck_child_is_named_and_one_that_obeys_late_is_not(autojump_clock):
    class Stubborn(Child):
        async def run(self, *, task_status):
            task_status.started()
            with trio.CancelScope(shield=True):
                await trio.sleep(60)

    diary = []
    supervisor = make(
        ChildSpec("a", lambda: Child("a", diary)),
        ChildSpec("b", lambda: Stubborn("b", diary), stop_timeout=30.0),
        total_stop_budget=5.0,
    )
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            await trio.sleep(1)
            supervisor.request_stop()
            await trio.sleep(6)
            assert states(supervisor) == {"a": Status.STOPPED, "b": Status.STUCK}
    assert diary[-1] == (6, "a ends")
    assert [(log["event"], log["subsystem"]) for log in logs] == [("subsystem stuck", "b")]
    assert trio.current_time() == 60
    assert states(supervisor)["b"] is Status.STOPPED


async def test_drains_share_the_total_budget(autojump_clock):
    diary = []
    specs = [
        ChildSpec(name, lambda name=name: Child(name, diary, drain_seconds=60.0), drain_timeout=10.0) for name in "abc"
    ]
    await start_and_stop(make(*specs, total_stop_budget=14.0), 0)
    assert [entry for entry in diary if "ends" in entry[1]] == [(10, "c ends"), (14, "b ends"), (14, "a ends")]


async def test_the_watchdog_is_armed_however_the_stop_comes_about(autojump_clock):
    def healthy():
        return ChildSpec("a", lambda: Child("a", []))

    asked = Armed()
    await start_and_stop(make(healthy(), watchdog=asked), 1)
    assert asked.at == 1

    cancelled = Armed()
    with trio.move_on_after(1):
        await make(healthy(), watchdog=cancelled).run()
    assert cancelled.at == 2

    failed = Armed()
    sick = ChildSpec("a", lambda: Child("a", [], crashes_after=1.0), CRITICAL, NO_RESTART)
    with pytest.raises(SubsystemFailed):
        await make(sick, watchdog=failed).run()
    assert failed.at == 3
