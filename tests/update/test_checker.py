"""The checker finds, says and installs; over a real publisher where bytes matter, on virtual time where hours do."""

import datetime

import attrs
import pytest
import trio
from support.release_server import KEYS, LATER, RAW_KEYS, artifact, make_release, make_wheel, run_release_server

from meshnode.errors import ReleaseRefused, UpdateBlocked, UpdateError, UpdateUnavailable
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.update.checker import UpdateChecker, UpdateQuestion, UpdateResources, UpdateSettings, UpdateState
from meshnode.update.fetching import Limits
from meshnode.update.pointer import Pointer, Trial, load_pointer, save_pointer
from meshnode.update.release import Verified
from meshnode.update.updater import Publisher, Updater

WHEEL = make_wheel("9.0.0")


@attrs.define(eq=False)
class FakeUpdater:
    """Finds `outcomes`, one after the other, the last one for ever."""

    outcomes: list
    running: str = "1.0"
    taken_back: dict = attrs.field(factory=dict)
    looked: list = attrs.field(factory=list)
    installed: list = attrs.field(factory=list)

    async def look(self):
        await trio.sleep(1)
        self.looked.append(trio.current_time())
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return Verified(outcome, "digest")

    def is_newer(self, release):
        return release.version != self.running

    async def failed(self):
        return self.taken_back

    async def tidy(self):
        await trio.lowlevel.checkpoint()

    async def install(self, release):
        self.installed.append((release.version, trio.current_time()))

    def now(self):
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@attrs.define(eq=False)
class Rig:
    updater: object
    busy_until: float = 0.0
    restarts: list = attrs.field(factory=list)
    mailbox: Mailbox = attrs.field(factory=lambda: Mailbox("UpdateChecker", 4))
    state: Latest = attrs.field(factory=lambda: Latest(UpdateState()))
    health: HealthBoard = attrs.field(factory=HealthBoard)

    def build(self, *, apply=False, first=20.0):
        resources = UpdateResources(
            self.updater,
            self.mailbox,
            self.state,
            self.health,
            is_busy=lambda: trio.current_time() < self.busy_until,
            restart=lambda: self.restarts.append(trio.current_time()),
        )
        return UpdateChecker(resources, UpdateSettings(3600.0, apply, first), Pulse())

    def conditions(self):
        return {condition.code: condition.text for condition in self.health.conditions()}


async def let_run(rig, seconds, **options):
    with trio.move_on_after(seconds):
        await rig.build(**options).run()


async def test_it_looks_soon_and_then_about_every_hour(autojump_clock):
    rig = Rig(FakeUpdater([make_release(version="1.0")]))
    await let_run(rig, 2.5 * 3600)  # long enough for the longest two waits, and too short for the shortest three
    first, *rest = rig.updater.looked
    assert first == 21
    assert len(rest) == 2
    assert all(3240 <= later - earlier <= 3961 for earlier, later in zip([first, *rest], rest, strict=False))
    assert rig.conditions() == {}


async def test_a_release_is_told_and_not_installed_unless_it_may_be(autojump_clock):
    rig = Rig(FakeUpdater([make_release(version="2.0")]))
    await let_run(rig, 4000)
    assert rig.updater.installed == []
    assert "meshnode 2.0 is there; `meshnode update apply`" in rig.conditions()["update_available"]
    assert rig.state.value.available.version == "2.0"


async def test_with_apply_it_waits_until_nothing_runs(autojump_clock):
    rig = Rig(FakeUpdater([make_release(version="2.0")]), busy_until=100.0)
    await let_run(rig, 1000, apply=True)
    ((version, at),) = rig.updater.installed
    assert version == "2.0"
    assert 100 <= at <= 131
    assert rig.restarts == [at]
    assert rig.state.value.installed == "2.0"


async def test_trouble_is_a_condition_that_goes_with_the_next_good_look(autojump_clock):
    rig = Rig(FakeUpdater([UpdateUnavailable("https://x answers 503"), make_release(version="1.0")]))
    await let_run(rig, 1000)
    assert rig.conditions() == {"update_problem": "no update: https://x answers 503"}
    assert rig.state.value.problem == "https://x answers 503"
    await let_run(rig, 1000)
    assert rig.conditions() == {}


async def test_what_was_taken_back_is_said_and_not_installed_again(autojump_clock):
    rig = Rig(FakeUpdater([make_release(version="2.0")], taken_back={"2.0": "it ended with status 1"}))
    await let_run(rig, 1000, apply=True)
    assert rig.updater.installed == []
    assert "2.0 was tried and taken back: it ended with status 1" in rig.conditions()["update_taken_back"]


async def asked(rig, question):
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.build(first=1e6).run)
        try:
            return await rig.mailbox.ask(question)
        finally:
            nursery.cancel_scope.cancel()


async def test_who_asks_is_answered_before_the_restart(autojump_clock):
    rig = Rig(FakeUpdater([make_release(version="2.0")]))
    assert (await asked(rig, UpdateQuestion.CHECK)).available.version == "2.0"
    assert rig.restarts == []
    assert (await asked(rig, UpdateQuestion.APPLY)).installed == "2.0"
    assert len(rig.restarts) == 1


async def test_nothing_newer_is_nothing_to_apply_and_no_trouble(autojump_clock):
    rig = Rig(FakeUpdater([make_release(version="1.0")]))
    with pytest.RaisesGroup(pytest.RaisesExc(UpdateBlocked, match=r"nothing to apply: meshnode 1\.0 is the newest")):
        await asked(rig, UpdateQuestion.APPLY)
    assert rig.conditions() == {}


# With a publisher


@pytest.fixture
def site():
    with run_release_server() as site:
        site.publish(WHEEL)
        yield site


@pytest.fixture
def updater(site, tmp_path):
    publisher = Publisher(site.url, RAW_KEYS, 2, "stable")
    limits = Limits(pause=0.0)
    return lambda **changes: Updater(
        publisher, tmp_path / "updates", "1.0", Lanes(), **{"limits": limits, "platform": "linux_x86_64"} | changes
    )


@pytest.mark.processes
async def test_a_release_is_pointed_at_when_it_lies_there(site, updater, tmp_path):
    release = (await updater().look()).release
    await updater().install(release)
    assert load_pointer(tmp_path / "updates") == Pointer(current="9.0.0", trial=Trial())
    assert sorted(path.name for path in (tmp_path / "updates").iterdir()) == [
        "current.json",
        "seen.json",
        "slots",
    ]


async def test_what_a_kill_left_is_cleared_away_and_what_runs_is_not(updater, tmp_path):
    folder = tmp_path / "updates"
    for place in ("slots/8.0.0", "slots/9.0.0.new/meshnode", "slots/7.0.0", "downloads", "pip/x"):
        (folder / place).mkdir(parents=True)
    (folder / "downloads" / "meshnode-9.0.0-py3-none-any.whl").touch()
    save_pointer(folder, Pointer(current="8.0.0"))
    await updater().tidy()
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "current.json",
        "slots",
        "slots/8.0.0",
    ]


@pytest.mark.processes
async def test_a_downgrade_is_refused_after_a_restart_too(site, updater):
    site.publish(WHEEL, sequence=5)
    await updater().look()
    site.publish(WHEEL, sequence=4)
    with pytest.raises(ReleaseRefused, match="a downgrade"):
        await updater().look()
    site.publish(WHEEL, sequence=5)
    await updater().look()


@pytest.mark.processes
async def test_a_release_that_is_not_verified_is_not_remembered(site, updater, tmp_path):
    site.publish(WHEEL, sequence=50, keys=KEYS[:1])
    with pytest.raises(ReleaseRefused, match="2 different ones are needed"):
        await updater().look()
    site.publish(WHEEL, sequence=50)
    with pytest.raises(ReleaseRefused, match="expired"):
        await updater(now=lambda: LATER).look()
    assert not (tmp_path / "updates" / "seen.json").exists()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"artifacts": (artifact(WHEEL, "linux_riscv64"),)}, UpdateBlocked, "not released for linux_x86_64"),
        ({"requires_python": ">=3.99"}, UpdateBlocked, "needs Python"),
        ({"artifacts": (artifact(WHEEL + b"x"),)}, UpdateUnavailable, "ended after"),
        ({"artifacts": (artifact(WHEEL[:-1]),)}, ReleaseRefused, "longer than"),
        ({"artifacts": (artifact(WHEEL, url="elsewhere.whl"),)}, UpdateUnavailable, "answers 404"),
        ({"artifacts": (artifact(WHEEL, url="http://192.0.2.7/x.whl"),)}, UpdateUnavailable, "come over https"),
        ({"version": "9.0.1"}, ReleaseRefused, "does not belong there"),
    ],
)
async def test_what_cannot_be_installed_leaves_everything_as_it_was(site, updater, tmp_path, changes, error, words):
    site.publish(WHEEL, **changes)
    release = (await updater().look()).release
    with pytest.raises(error, match=words):
        await updater().install(release)
    assert load_pointer(tmp_path / "updates") == Pointer()
    assert not list((tmp_path / "updates").rglob("*.whl*"))
    assert not list((tmp_path / "updates").rglob("meshnode"))


async def test_what_has_expired_since_it_was_looked_at_is_not_even_fetched(tmp_path):
    publisher = Publisher("https://nowhere.invalid/release.json", RAW_KEYS, 2, "stable")
    with pytest.raises(ReleaseRefused, match="expired"):
        await Updater(publisher, tmp_path, "1.0", Lanes(), now=lambda: LATER).install(make_release(WHEEL))


@pytest.mark.processes
async def test_a_failed_version_is_not_even_fetched(site, updater, tmp_path):
    save_pointer(tmp_path / "updates", Pointer(failed={"9.0.0": "it ended with status 1"}))
    with pytest.raises(UpdateBlocked, match="wait for a newer one"):
        await updater().install((await updater().look()).release)
    assert [path for path, _ in site.asked] == ["/release.json"]


@pytest.mark.processes
async def test_a_full_disk_leaves_everything_as_it_was(site, updater, tmp_path):
    downloads = tmp_path / "updates" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "meshnode-9.0.0-py3-none-any.whl.part").symlink_to("/dev/full")
    with pytest.raises(UpdateError, match="is full"):
        await updater().install((await updater().look()).release)
    assert list(downloads.iterdir()) == []
    assert load_pointer(tmp_path / "updates") == Pointer()
