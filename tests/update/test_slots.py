"""What is unpacked is meshnode, in the version that was signed, with what it needs, and lies in its slot alone."""

import pytest
from packaging.requirements import Requirement
from support.release_server import make_wheel

from meshnode.errors import ReleaseRefused, UpdateBlocked, UpdateError
from meshnode.files.pip_process import PipResult
from meshnode.flow.lanes import Lanes
from meshnode.update import slots
from meshnode.update.slots import fill_slot, installed_version, remove_slots, unmet

FILES = {"__init__.py": "", "inner/thing.py": "x = 1"}


@pytest.fixture
def fill(tmp_path):
    async def act(wheel, version="9.0.0", **options):
        path = tmp_path / f"meshnode-{version}-py3-none-any.whl"
        path.write_bytes(wheel)
        return await fill_slot(path, version, tmp_path / "updates", Lanes(), **options)

    return act


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "updates").rglob("*")) if (tmp_path / "updates").exists() else []


async def test_a_wheel_lies_in_the_slot_of_its_version(fill, tmp_path):
    slot = await fill(make_wheel("9.0.0", FILES, requires=["trio>=0.30", "never-there; extra == 'x'"]))
    assert slot == tmp_path / "updates" / "slots" / "9.0.0"
    assert (slot / "meshnode" / "inner" / "thing.py").read_text() == "x = 1"
    assert [path.name for path in slot.parent.iterdir()] == ["9.0.0"]


async def test_what_lay_in_the_slot_before_is_gone(fill):
    (await fill(make_wheel("9.0.0", {"__init__.py": "", "old.py": ""}))).exists()
    slot = await fill(make_wheel("9.0.0", FILES))
    assert not (slot / "meshnode" / "old.py").exists()


async def test_an_unmet_dependency_is_refused_with_the_command_that_meets_it(fill, tmp_path):
    wheel = make_wheel("9.0.0", FILES, requires=["trio>=99", "no-such-thing>=1", "attrs"])
    with pytest.raises(UpdateBlocked, match=r"-m pip install 'trio>=99' 'no-such-thing>=1'`") as refused:
        await fill(wheel)
    assert f"trio {installed_version('trio')}, no-such-thing not at all" in str(refused.value)
    assert left(tmp_path) == []


def test_only_what_holds_for_this_machine_is_needed():
    wanted = [Requirement("a; python_version < '3'"), Requirement("b>=2"), Requirement("c>=2"), Requirement("d")]
    installed = {"b": "2.1", "c": "1.9", "d": "5rc1"}.get
    assert unmet(wanted, installed) == [Requirement("c>=2")]


@pytest.mark.parametrize(
    "member",
    [
        "../outside.py",
        "meshnode/../../outside.py",
        "/etc/outside.py",
        "meshnode\\..\\outside.py",
        "torch/__init__.py",
        "sitecustomize.py",
        "outside.pth",
        "meshnode-9.0.0.data/scripts/meshnode",
        "meshnode/new\nline.py",
    ],
)
async def test_a_file_that_does_not_belong_there_is_refused(fill, tmp_path, member):
    with pytest.raises(ReleaseRefused, match="does not belong there"):
        await fill(make_wheel("9.0.0", FILES, extra={member: "evil"}))
    assert left(tmp_path) == []
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize(
    ("wheel", "words"),
    [
        (make_wheel("9.0.1", FILES), "does not belong there"),
        (make_wheel("9.0.0", FILES, name="other"), "does not belong there"),
        (b"no zip at all", "is no wheel of meshnode 9"),
        (make_wheel("9.0.0", FILES)[:-200], "is no wheel of meshnode 9"),
        (make_wheel("9.0.0", FILES, requires=["%%%"]), "no good metadata"),
    ],
)
async def test_another_wheel_than_the_release_says_is_refused(fill, tmp_path, wheel, words):
    with pytest.raises(ReleaseRefused, match=words):
        await fill(wheel)
    assert left(tmp_path) == []


async def test_a_wheel_for_another_python_is_refused(fill):
    with pytest.raises(UpdateBlocked, match=r"needs Python >=3\.99"):
        await fill(make_wheel("9.0.0", FILES, python=">=3.99"))


async def test_a_bomb_is_not_unpacked(fill, monkeypatch):
    monkeypatch.setattr(slots, "_MAX_UNPACKED", 1000)
    with pytest.raises(ReleaseRefused, match="would unpack to more than"):
        await fill(make_wheel("9.0.0", {"__init__.py": " " * 1001}))


@pytest.mark.parametrize(
    ("line", "words"),
    [("ERROR: [Errno 28] No space left on device", "the disk of .* is full"), ("ERROR: odd", "could not unpack .*odd")],
)
async def test_when_pip_fails_there_is_no_slot(fill, tmp_path, monkeypatch, line, words):
    async def fail(*_):
        return PipResult(1, (line,))

    monkeypatch.setattr(slots, "run_pip", fail)
    with pytest.raises(UpdateError, match=words):
        await fill(make_wheel("9.0.0", FILES))
    assert left(tmp_path) == ["slots"]


async def test_a_folder_that_cannot_be_written_is_said(fill, tmp_path):
    (tmp_path / "updates").write_text("in the way")
    with pytest.raises(UpdateError, match="cannot be used"):
        await fill(make_wheel("9.0.0", FILES))


def test_slots_that_nobody_needs_go(tmp_path):
    for version in ("1", "2", "3"):
        (tmp_path / "slots" / version / "meshnode").mkdir(parents=True)
    remove_slots(tmp_path, ("2", None))
    assert [path.name for path in (tmp_path / "slots").iterdir()] == ["2"]
