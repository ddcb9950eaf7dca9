"""Real nodes as real processes: how they start, what they tell the service manager, and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.processes

OBEY_PERMISSIONS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # what lets root write anywhere; others never had it
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def environment(**extra):
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "NOTIFY", "WATCHDOG"))
    }
    return {**kept, **extra}


def command(folder, *arguments):
    return [sys.executable, "-m", "meshnode", "run", "--offline", "--no-browser", "--data-dir", str(folder), *arguments]


@contextmanager
def node(folder, *arguments, **extra):
    """A node without models on a free port; killed at the end if it still runs."""
    with subprocess.Popen(
        command(folder, "--port", "0", *arguments), env=environment(**extra), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_ready(folder, process, seconds=60):
    """Return the address once the node says that it is ready."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        try:
            said = json.loads((folder / "runtime.json").read_text())
            url = f"http://{said['host']}:{said['port']}"
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                assert said["pid"] == process.pid
                return url
        except (OSError, ValueError):
            time.sleep(0.05)
    raise AssertionError("the node did not become ready")


def end(process, number=signal.SIGTERM):
    process.send_signal(number)
    _, log = process.communicate(timeout=30)
    return process.returncode, [json.loads(line) for line in log.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_zero_and_nothing_left_behind(tmp_path, number):
    with node(tmp_path) as process:
        wait_until_ready(tmp_path, process)
        code, log = end(process, number)
    assert code == 0
    assert log[-1]["event"] == "node has stopped"
    complaints = [line for line in log if line["level"] in ("error", "warning")]
    assert not [line for line in complaints if line["event"] != "loop stalled"]  # that one is up to the machine
    assert not (tmp_path / "runtime.json").exists()


def test_the_folder_is_private_and_the_key_opens_the_api(tmp_path):
    folder = tmp_path / "data"
    with node(folder) as process:
        url = wait_until_ready(folder, process)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v1/models", timeout=5)
        key = (folder / "api_key").read_text().strip()
        request = urllib.request.Request(f"{url}/api/admin/status", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            status = json.load(answer)
        assert {part["state"] for part in status["subsystems"]} == {"running"}
        _, log = end(process)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "api_key").stat().st_mode & 0o777 == 0o600
    assert key not in json.dumps(log)


def refused(folder, *arguments, wrapper=()):
    """Run a node that cannot start; return its exit code and the lines it printed, a slow machine's warnings apart."""
    result = subprocess.run(
        [*wrapper, *command(folder, *arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = (result.stdout + result.stderr).splitlines()
    return result.returncode, [line for line in lines if "loop stalled" not in line]


def test_a_port_in_use_is_one_line_and_64(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = refused(tmp_path, "--port", str(port))
    assert code == 64
    (line,) = lines
    assert f"port {port} on 127.0.0.1 is in use by another program; choose another with --port" in line


def test_the_peers_port_in_use_is_one_line_and_64(tmp_path):
    arguments = [argument for argument in command(tmp_path, "--port", "0") if argument != "--offline"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*arguments, "--p2p-port", str(port)],
            env=environment(MESHNODE_NETWORK_HOST="127.0.0.1"), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert result.returncode == 64
    said = [json.loads(line) for line in (result.stdout + result.stderr).splitlines()]
    (line,) = [line for line in said if line["level"] != "info" and "stalled" not in line["event"]]
    assert f"cannot listen for peers on 127.0.0.1 port {port}: Address already in use" in line["event"]
    assert "exception" not in line


def test_a_second_node_on_the_same_folder_is_one_line_and_64_and_after_a_kill_it_starts(tmp_path):
    with node(tmp_path) as process:
        wait_until_ready(tmp_path, process)
        code, lines = refused(tmp_path, "--port", "0")
        assert code == 64
        (line,) = lines
        assert f"in use by another node (pid {process.pid})" in line
        assert (tmp_path / "runtime.json").exists()
        process.kill()
        process.wait()
    with node(tmp_path) as process:
        wait_until_ready(tmp_path, process)
        assert end(process)[0] == 0


def test_a_folder_that_cannot_be_written_is_one_line_and_64(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o555)
    code, lines = refused(folder, "--port", "0", wrapper=(sys.executable, "-c", OBEY_PERMISSIONS))
    assert code == 64
    (line,) = lines
    assert f"the data folder {folder} cannot be used: Permission denied" in line


def test_a_damaged_database_is_one_line_and_64(tmp_path):
    (tmp_path / "store").write_text("this is no folder")
    code, lines = refused(tmp_path, "--port", "0")
    assert code == 64
    (line,) = lines
    assert "the store in" in line


def test_a_wrong_setting_is_one_line_and_64(tmp_path):
    (tmp_path / "config.toml").write_text("[api]\nprot = 1\n")
    code, lines = refused(tmp_path)
    assert code == 64
    (line,) = lines
    assert "api.prot: no such setting; did you mean api.port?" in line


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket, in both name spaces."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@meshnode-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("\0" + name[1:] if name.startswith("@") else name)
        line.settimeout(60)
        yield name, line


def test_the_service_manager_hears_ready_watchdog_and_stopping(tmp_path, manager):
    name, line = manager
    folder = tmp_path / "data"
    with node(folder, NOTIFY_SOCKET=name, WATCHDOG_USEC="600000") as process:
        first = line.recv(1000).decode()
        assert first.startswith("READY=1\nSTATUS=serving on http://127.0.0.1:")
        assert [line.recv(1000) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        process.terminate()
        heard = b"WATCHDOG=1"
        while heard == b"WATCHDOG=1":
            heard = line.recv(1000)
        assert heard == b"STOPPING=1\nSTATUS=stopping"
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_credential_of_the_service_manager_is_the_key_and_the_admin_route_stops_it_like_a_signal(tmp_path):
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "api_key").write_text("the-key-from-systemd\n")
    folder, key = tmp_path / "data", {"Authorization": "Bearer the-key-from-systemd"}
    with node(folder, CREDENTIALS_DIRECTORY=str(tmp_path / "credentials")) as process:
        url = wait_until_ready(folder, process)
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models", headers=key), timeout=5) as answer:
            assert answer.status == 200
        assert not (folder / "api_key").exists()
        stop = urllib.request.Request(f"{url}/api/admin/shutdown", method="POST", headers=key)
        with urllib.request.urlopen(stop, timeout=5) as answer:
            assert answer.status == 202
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(("offline", "loaded"), [(False, ["libp2p"]), (True, [])])
def test_a_whole_run_of_the_daemon_never_loads_torch_and_libp2p_only_for_a_mesh(tmp_path, offline, loaded):
    code = """
import os, pathlib, signal, sys, threading, time
from meshnode.config.loading import load_config
from meshnode.node.process import run_node
folder = pathlib.Path(sys.argv[1])

def stop():
    while not (folder / "runtime.json").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop, daemon=True).start()
code = run_node(load_config(flags={"node.data_dir": folder, "api.port": 0, "node.offline": sys.argv[2] == "True"}, env={}, file=None))
print(code, sorted({"torch", "libp2p"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(offline)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == f"0 {loaded}\n", result.stderr


def test_a_node_that_is_stuck_ends_itself_with_70_and_says_where():
    code = """
import trio
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import ChildSpec
from meshnode.supervise.supervisor import Supervisor
from meshnode.supervise.watchdog import ShutdownWatchdog

class Stubborn:
    async def run(self, *, task_status):
        task_status.started()
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    async def drain(self):
        pass

async def main():
    spec = ChildSpec("Stubborn", Stubborn, stop_timeout=0.1)
    supervisor = Supervisor([spec], health=HealthBoard(), watchdog=ShutdownWatchdog(seconds=0.5))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        supervisor.request_stop()

trio.run(main)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 70
    assert "still running 0.5 s after it began to stop" in result.stderr
    assert "Stubborn.run" in result.stderr
