"""Real processes: a node becomes another version, and is itself again when that one does not work."""

import json
import re
import signal
import time
from functools import cache
from pathlib import Path

import httpx
import pytest
import trio
from support.real_node import Node
from support.release_server import KEYS, key_text, make_wheel, run_release_server

import meshnode
from meshnode.config.paths import DataPaths
from meshnode.flow.lanes import Lanes
from meshnode.store.opening import open_store
from meshnode.update.pointer import load_pointer
from meshnode.update.slots import fill_slot
from meshnode.update.trial import activate

pytestmark = pytest.mark.processes

EXITS = {"__init__.py": "", "__main__.py": "raise SystemExit(1)"}
RAISES = {"__init__.py": "", "__main__.py": "raise RuntimeError('no such thing')"}
HANGS = {"__init__.py": "", "__main__.py": "import time\ntime.sleep(600)"}
SAYS = "import os, pathlib, sys, time\npathlib.Path(sys.argv[sys.argv.index('--data-dir') + 1], 'tried').touch()\n"
WAITS = {"__init__.py": "", "__main__.py": SAYS + "time.sleep(600)"}


@cache
def real_wheel(version):
    """Return this very code, as another version."""
    root = Path(meshnode.__file__).parent
    files = {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*"))
        if path.suffix in (".py", ".html", ".js", ".css", ".typed", ".svg", ".json")
    }
    files["__init__.py"] = re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', files["__init__.py"])
    return make_wheel(version, files, requires=["trio>=0.31", "attrs"])


@pytest.fixture
def site():
    with run_release_server() as site:
        yield site


def settings(site=None, **more):
    return {
        "MESHNODE_UPDATES_ENABLED": "true",
        "MESHNODE_UPDATES_URL": site.url if site is not None else "http://127.0.0.1:1/release.json",
        "MESHNODE_UPDATES_KEYS": ",".join(map(key_text, KEYS)),
        "MESHNODE_UPDATES_READY_TIMEOUT": "60",
        "MESHNODE_NETWORK_ENABLED": "false",
        "MESHNODE_LOG_FORMAT": "json",
        **more,
    }


def install(folder, version, wheel):
    """Have the next start try a wheel."""
    path = folder / f"meshnode-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wheel)
    trio.run(fill_slot, path, version, folder / "updates", Lanes())
    activate(folder / "updates", version)


def wait_for(what):
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except (OSError, ValueError, KeyError, httpx.TransportError):
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come")


async def make_store(path):
    async with open_store(path, Lanes()):
        pass


def said(node):
    """Return the status of the node that the folder leads to now."""
    at = json.loads((node.folder / "runtime.json").read_text())
    key = (node.folder / "api_key").read_text().strip()
    answer = httpx.get(
        f"http://127.0.0.1:{at['port']}/api/admin/updates",
        headers={"Authorization": f"Bearer {key}"},
        timeout=20,
        trust_env=False,
    )
    return answer.json()


def test_a_release_is_applied_in_place_and_stays_and_one_that_fails_leads_back_to_it(site, tmp_path):
    site.publish(real_wheel("9.0.0"), version="9.0.0")
    folder = tmp_path / "data"
    with Node(folder, **settings(site)) as node:
        assert node.http.get("/api/admin/updates").json()["running"] == meshnode.__version__
        checked = node.http.post("/api/admin/updates/check").json()
        assert checked["available"]["version"] == "9.0.0"
        conditions = node.http.get("/api/admin/status").json()["conditions"]
        assert "`meshnode update apply` installs it" in conditions[0]["text"]
        applied = node.http.post("/api/admin/updates/apply")
        assert (applied.status_code, applied.json()["installed"]) == (202, "9.0.0")
        now = wait_for(lambda: (state := said(node))["running"] == "9.0.0" and state)
        assert now["installation"] == meshnode.__version__
        wait_for(lambda: load_pointer(folder / "updates").trial is None)
        assert json.loads((folder / "runtime.json").read_text())["pid"] == node.process.pid
        node.process.send_signal(signal.SIGTERM)
        assert node.end() == 0
    assert not (folder / "updates" / "store-before-trial").exists()
    with Node(folder, **settings(site)) as node:
        state = node.http.post("/api/admin/updates/check").json()
        assert (state["running"], state["available"], state["problem"]) == ("9.0.0", None, None)
        refused = node.http.post("/api/admin/updates/apply")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "update_blocked")
        site.publish(make_wheel("9.1.0", EXITS), version="9.1.0", sequence=2)
        assert node.http.post("/api/admin/updates/apply").json()["running"] == "9.0.0"
        now = wait_for(lambda: (state := said(node))["failed"] and state)
        assert (now["running"], now["installation"]) == ("9.0.0", meshnode.__version__)
        assert "ended with status 1" in now["failed"]["9.1.0"]
        at = json.loads((folder / "runtime.json").read_text())
        assert at["pid"] == node.process.pid
        again = httpx.post(
            f"http://127.0.0.1:{at['port']}/api/admin/updates/apply",
            headers=node.http.headers,
            timeout=60,
            trust_env=False,
        )
        assert (again.status_code, "tried here and taken back" in again.text) == (409, True)
    with Node(folder, **{**settings(site), "MESHNODE_UPDATES_ENABLED": "false"}) as node:
        assert node.http.get("/api/admin/status").json()["version"] == meshnode.__version__


def test_a_version_that_does_not_start_is_taken_back_at_once(tmp_path):
    folder = tmp_path / "data"
    install(folder, "9.0.0", make_wheel("9.0.0", RAISES))
    with Node(folder, **settings()) as node:
        state = node.http.get("/api/admin/updates").json()
        assert state["running"] == meshnode.__version__
        assert "RuntimeError: no such thing" in state["failed"]["9.0.0"]
        assert json.loads((folder / "runtime.json").read_text())["pid"] == node.process.pid
        (condition,) = node.http.get("/api/admin/status").json()["conditions"]
        assert "9.0.0 was tried and taken back" in condition["text"]


def test_a_version_that_is_never_ready_is_taken_back(tmp_path):
    folder = tmp_path / "data"
    install(folder, "9.0.0", make_wheel("9.0.0", HANGS))
    with Node(folder, **settings(MESHNODE_UPDATES_READY_TIMEOUT="5")) as node:
        assert node.http.get("/api/admin/updates").json()["failed"] == {"9.0.0": "it was not ready within 5 s"}


def test_a_process_that_dies_in_the_trial_is_the_end_of_it(tmp_path):
    folder = tmp_path / "data"
    install(folder, "9.0.0", make_wheel("9.0.0", WAITS))
    trying = Node(folder, **settings())
    try:
        wait_for((folder / "tried").exists)
        trying.process.kill()
    finally:
        trying.__exit__()
    (folder / "tried").unlink()
    with Node(folder, **settings()) as node:
        failed = node.http.get("/api/admin/updates").json()["failed"]
        assert failed == {"9.0.0": "its process ended before it was ready"}
    assert not (folder / "tried").exists()


def test_who_stops_a_node_in_the_trial_does_not_fail_it(tmp_path):
    folder = tmp_path / "data"
    install(folder, "9.0.0", make_wheel("9.0.0", WAITS))
    trying = Node(folder, **settings())
    try:
        wait_for((folder / "tried").exists)
        trying.process.send_signal(signal.SIGTERM)
        assert trying.end() == 0
    finally:
        trying.__exit__()
    pointer = load_pointer(folder / "updates")
    assert (pointer.current, pointer.trial.tries, pointer.trial.pid, pointer.failed) == ("9.0.0", 1, 0, {})


def test_what_a_failed_version_did_to_the_database_is_undone(tmp_path):
    folder = tmp_path / "data"
    trio.run(make_store, DataPaths(folder).store)
    spoil = (
        "import shutil\nshutil.rmtree(pathlib.Path(sys.argv[sys.argv.index('--data-dir') + 1], 'store'))\nsys.exit(3)"
    )
    before = sorted(path.name for path in (folder / "store").iterdir())
    assert before
    install(folder, "9.0.0", make_wheel("9.0.0", {"__init__.py": "", "__main__.py": SAYS + spoil}))
    (folder / "store" / "mark").touch()
    with Node(folder, **settings()):
        assert (folder / "tried").exists()
        assert (folder / "store" / "mark").exists()


def test_enabled_without_a_publisher_is_one_sentence(tmp_path):
    node = Node(tmp_path, MESHNODE_UPDATES_ENABLED="true", MESHNODE_LOG_FORMAT="json")
    try:
        assert node.end() == 64
        assert "updates.url is not set" in node.log[-1]["event"]
    finally:
        node.__exit__()
