"""The example unit is one that systemd takes, and it says what the node relies on."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from meshnode.supervise.watchdog import ShutdownWatchdog

UNIT = Path(__file__).parents[2] / "examples" / "meshnode.service"


@pytest.fixture
def service():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_the_unit_is_notified_watched_and_given_time_to_drain(service):
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 30
    assert int(service["TimeoutStopSec"]) == 30 > ShutdownWatchdog().seconds
    assert service["LoadCredential"].startswith("api_key:")
    assert service["RestartPreventExitStatus"] == "64"


def test_the_sandbox_is_closed(service):
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictSUIDSGID"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.processes
def test_systemd_takes_the_unit(tmp_path):
    text = UNIT.read_text().replace("/opt/meshnode/bin/python", shutil.which("true"))
    (tmp_path / "meshnode.service").write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "meshnode.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
