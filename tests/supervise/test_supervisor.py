"""The supervisor's rules, in virtual time."""

import itertools
import random

import pytest
import trio

from meshnode.errors import ConfigError, Fatal
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import (
    ChildSpec,
    Criticality,
    Pulse,
    RestartPolicy,
    Status,
    SubsystemFailed,
)
from meshnode.supervise.supervisor import Supervisor

CRITICAL = Criticality.CRITICAL


class Script:
    """A subsystem whose every incarnation follows the next line of a script, and which writes a diary."""

    def __init__(self, name, diary, lines=(), *, drain=0.0, stop=0.0, stop_error=None, stubborn=False):
        self.name, self.diary, self.lines = name, diary, iter(lines)
        self.drain_time, self.stop_time, self.stop_error, self.stubborn = drain, stop, stop_error, stubborn

    def note(self, what):
        self.diary.append((round(trio.current_time(), 2), f"{self.name} {what}"))

    async def run(self, *, task_status):
        line = next(self.lines, "serve")
        if line == "fail to start":
            self.note("fails to start")
            raise ValueError("no start")
        if line == "hang":
            await trio.sleep_forever()
        if isinstance(line, BaseException):
            raise line
        self.note("starts")
        task_status.started()
        try:
            if isinstance(line, float):
                await trio.sleep(line)
                self.note("crashes")
                raise RuntimeError("boom")
            if line == "return":
                return
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1000 if self.stubborn else self.stop_time)
            if line != "return" and not isinstance(line, float):
                self.note("stops")
            if self.stop_error is not None:
                raise self.stop_error

    async def drain(self):
        self.note("drains")
        if isinstance(self.drain_time, Exception):
            raise self.drain_time
        await trio.sleep(self.drain_time)
        self.note("has drained")


def spec(script, criticality=Criticality.NON_CRITICAL, **policy):
    restart = RestartPolicy(
        **{key: policy.pop(key) for key in ("max_restarts", "period", "backoff_initial") if key in policy}
    )
    return ChildSpec(script.name, lambda: script, criticality, restart, **policy)


def make(*specs, health=None, **options):
    return Supervisor(specs, health=health or HealthBoard(), rng=random.Random(0), **options)


async def run_for(supervisor, seconds):
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(seconds)
        supervisor.request_stop()


def words(diary):
    return [what for _, what in diary]


async def test_children_start_in_order_and_stop_in_reverse(autojump_clock):
    diary = []
    supervisor = make(*(spec(Script(name, diary)) for name in "abc"))
    await run_for(supervisor, 1)
    assert words(diary) == ["a starts", "b starts", "c starts", "c stops", "b stops", "a stops"]
    assert {state.status for state in supervisor.states()} == {Status.STOPPED}


async def test_outer_cancellation_stops_in_reverse_too(autojump_clock):
    diary = []
    supervisor = make(*(spec(Script(name, diary), drain_timeout=5.0) for name in "ab"))
    with trio.move_on_after(3):
        await supervisor.run()
    assert words(diary)[2:] == ["b drains", "b has drained", "b stops", "a drains", "a has drained", "a stops"]


async def test_a_crash_is_restarted_with_growing_pauses(autojump_clock):
    diary, crashed = [], []
    script = Script("a", diary, [0.0, 0.0, 0.0])
    supervisor = make(spec(script, backoff_initial=1.0), on_crash=crashed.append)
    await run_for(supervisor, 60)
    starts = [at for at, what in diary if what == "a starts"]
    assert len(starts) == 4
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    for pause, expected in zip(pauses, (1, 2, 4), strict=True):
        assert 0.8 * expected <= pause <= 1.2 * expected + 0.01
    assert crashed == ["a"] * 3
    assert supervisor.states()[0].restarts == 3
    assert supervisor.states()[0].last_error == "RuntimeError: boom"


async def test_one_failure_an_hour_never_adds_up(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, [3600.0] * 20), CRITICAL, max_restarts=2, period=60.0))
    await run_for(supervisor, 3600 * 15)
    assert words(diary).count("a crashes") >= 14


async def test_a_critical_child_that_spends_its_budget_stops_the_tree(autojump_clock):
    diary = []
    supervisor = make(
        spec(Script("a", diary)),
        spec(Script("b", diary, [1.0] * 9), CRITICAL, max_restarts=2),
        spec(Script("c", diary)),
    )
    with pytest.raises(SubsystemFailed, match="b crashed 3 times within 30 s: RuntimeError: boom"):
        await supervisor.run()
    assert words(diary)[-2:] == ["c stops", "a stops"]


async def test_without_restarts_a_critical_crash_cancels_the_tree(autojump_clock):
    diary = []
    with pytest.raises(SubsystemFailed):
        await make(spec(Script("a", diary, [1.0]), CRITICAL, max_restarts=0)).run()


async def test_a_non_critical_child_rests_and_tries_again(autojump_clock):
    diary, health = [], HealthBoard()
    script = Script("a", diary, [1.0, 1.0])
    supervisor = make(spec(script, max_restarts=1, cooldown=100.0), health=health)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(50)
        assert supervisor.states()[0].status is Status.RESTING
        assert [condition.code for condition in health.conditions()] == ["subsystem_failed"]
        await trio.sleep(100)
        assert supervisor.states()[0].status is Status.RUNNING
        assert health.conditions() == ()
        supervisor.request_stop()


async def test_a_child_can_be_stopped_while_it_rests(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, [0.0]), max_restarts=0, cooldown=1e6))
    await run_for(supervisor, 5)
    assert supervisor.states()[0].status is Status.STOPPED


async def test_a_critical_child_that_fails_its_first_start_aborts_the_boot(autojump_clock):
    diary = []
    supervisor = make(
        spec(Script("a", diary)), spec(Script("b", diary, ["fail to start"]), CRITICAL), spec(Script("c", diary))
    )
    with pytest.raises(SubsystemFailed, match="b could not start: ValueError: no start") as caught:
        await supervisor.run()
    assert caught.value.__cause__ is not None
    assert words(diary) == ["a starts", "b fails to start", "a stops"]


async def test_a_setting_that_a_critical_child_refuses_at_its_first_start_ends_the_tree_as_such(autojump_clock):
    diary, crashes = [], []
    refusal = ConfigError("port 1 is in use")
    supervisor = make(
        spec(Script("a", diary)),
        spec(Script("b", diary, [ExceptionGroup("x", [refusal])]), CRITICAL),
        on_crash=crashes.append,
    )
    with pytest.raises(ConfigError, match="port 1 is in use"):
        await supervisor.run()
    assert (words(diary), crashes) == (["a starts", "a stops"], [])
    assert supervisor.states()[1].status is Status.FAILED


@pytest.mark.parametrize(
    "lines", [[0.0, ConfigError("later")], [ExceptionGroup("x", [ConfigError("too"), ValueError()])]]
)
async def test_what_comes_later_or_with_something_else_is_a_crash(autojump_clock, lines):
    with pytest.raises(SubsystemFailed):
        await make(spec(Script("a", [], lines), CRITICAL, max_restarts=1)).run()


async def test_a_non_critical_child_that_fails_its_first_start_is_retried_behind(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, ["fail to start"]), backoff_initial=5.0), spec(Script("b", diary)))
    await run_for(supervisor, 20)
    assert words(diary)[:3] == ["a fails to start", "b starts", "a starts"]


async def test_a_start_that_hangs_is_a_failure(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, ["hang"]), CRITICAL, start_timeout=7.0))
    with pytest.raises(SubsystemFailed, match="a was not ready within 7 s"):
        await supervisor.run()
    assert trio.current_time() == pytest.approx(7)


async def test_returning_unasked_is_a_crash(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, ["return"])))
    await run_for(supervisor, 5)
    assert words(diary) == ["a starts", "a starts", "a stops"]
    assert "ended although" in supervisor.states()[0].last_error


async def test_fatal_skips_the_budget_and_keeps_its_exit_code(autojump_clock):
    diary = []
    supervisor = make(
        spec(Script("a", diary)),
        spec(Script("b", diary, [ExceptionGroup("x", [ValueError(), Fatal("disk", exit_code=64)])])),
    )
    with pytest.raises(Fatal, match="disk") as caught:
        await supervisor.run()
    assert caught.value.exit_code == 64
    assert words(diary)[-1] == "a stops"


async def test_draining_is_bounded(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, drain=100.0), drain_timeout=4.0))
    await run_for(supervisor, 1)
    assert diary[-1] == (5.0, "a stops")
    assert "a has drained" not in words(diary)


async def test_a_second_request_ends_draining_at_once(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, drain=100.0), drain_timeout=50.0), spec(Script("b", diary)))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.request_stop()
        await trio.sleep(2)
        supervisor.request_stop(urgent=True)
    assert trio.current_time() == pytest.approx(2)


async def test_an_urgent_request_does_not_drain(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, drain=9.0), drain_timeout=50.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.request_stop(urgent=True)
    assert "a drains" not in words(diary)


async def test_a_failing_drain_does_not_stop_the_stop(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, drain=OSError("disk")), drain_timeout=5.0))
    await run_for(supervisor, 1)
    assert words(diary)[-1] == "a stops"


async def test_a_stuck_child_is_left_behind_and_the_total_budget_holds(autojump_clock):
    diary = []
    supervisor = make(
        spec(Script("a", diary)),
        spec(Script("b", diary, stubborn=True), stop_timeout=5.0),
        spec(Script("c", diary, stubborn=True), stop_timeout=5.0),
        total_stop_budget=8.0,
    )
    await run_for(supervisor, 0)
    assert (8.0, "a stops") in diary


async def test_errors_while_stopping_never_replace_the_cause(autojump_clock):
    diary = []
    supervisor = make(
        spec(Script("a", diary, stop_error=KeyError("cleanup"))),
        spec(Script("b", diary, [1.0]), CRITICAL, max_restarts=0),
    )
    with pytest.raises(SubsystemFailed, match="b crashed"):
        await supervisor.run()
    await run_for(make(spec(Script("a", diary, stop_error=KeyError("cleanup")))), 1)


async def test_a_silent_pulse_is_a_condition_and_then_a_crash(autojump_clock):
    diary, health, pulse = [], HealthBoard(), Pulse()
    supervisor = make(spec(Script("a", diary), pulse=pulse, pulse_limit=10.0), health=health)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(4)
        pulse.touch()
        await trio.sleep(9)
        assert health.conditions() == ()
        await trio.sleep(9)
        assert [condition.code for condition in health.conditions()] == ["pulse_silent"]
        pulse.touch()
        await trio.sleep(6)
        assert health.conditions() == ()
        await trio.sleep(40)
        assert supervisor.states()[0].restarts == 1
        assert "main loop" in supervisor.states()[0].last_error
        supervisor.request_stop()


async def test_keyboard_interrupt_passes_through(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary)), spec(Script("b", diary, [KeyboardInterrupt()])))
    with pytest.raises(BaseException) as caught:
        await supervisor.run()
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KeyboardInterrupt)
    assert words(diary)[-1] == "a stops"


async def test_a_stop_during_the_boot_starts_no_more(autojump_clock):
    diary = []
    slow = Script("b", diary, ["hang"])
    supervisor = make(spec(Script("a", diary)), spec(slow), spec(Script("c", diary)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await trio.sleep(1)
        supervisor.request_stop()
    assert "c starts" not in words(diary)


def test_a_pulse_that_never_beat_has_no_age():
    assert Pulse().age() == 0


async def test_of_two_causes_the_first_leaves(autojump_clock):
    diary = []
    children = (spec(Script(name, diary, [1.0]), CRITICAL, max_restarts=0) for name in "ab")
    with pytest.raises(SubsystemFailed):
        await make(*children).run()


async def test_a_child_may_crash_while_it_drains(autojump_clock):
    diary = []
    supervisor = make(spec(Script("a", diary, [2.0], drain=9.0), drain_timeout=5.0, backoff_initial=50.0))
    await run_for(supervisor, 1)
    assert words(diary)[-1] != "a starts"


@pytest.mark.parametrize("criticality", Criticality)
async def test_a_child_that_can_no_longer_be_supervised_stops_the_tree(autojump_clock, criticality):
    """A crash report that fails once left the child gone, marked as stopped, and the tree running without it."""

    def report(_name):
        raise ValueError("no such metric")

    diary = []
    supervisor = make(spec(Script("a", diary)), spec(Script("b", diary, [1.0]), criticality), on_crash=report)
    with pytest.raises(SubsystemFailed, match="b can no longer be supervised: ValueError: no such metric"):
        await supervisor.run()
    assert supervisor.states()[1].status is Status.FAILED
    assert words(diary)[-1] == "a stops"
