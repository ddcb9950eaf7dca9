"""What `meshnode update` prints, for who runs a node and for who publishes."""

import json

import pytest
from support.release_server import make_wheel

from meshnode import __version__
from meshnode.update.pointer import Pointer, save_pointer

STATUS = {
    "enabled": True,
    "running": "1.0",
    "installation": "1.0",
    "channel": "stable",
    "checked": "2026-11-24T12:00:00+00:00",
    "available": None,
    "installed": None,
    "problem": None,
    "failed": {},
}
THERE = {"version": "2.0", "sequence": 4, "expires": "2027-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["meshnode 1.0 runs", "nothing newer in channel stable, as of 2026-11-24T12:00:00+00:00"]),
        ({"available": THERE}, ["meshnode 1.0 runs", "meshnode 2.0 is there; `meshnode update apply` installs it"]),
        ({"running": "1.5", "checked": None}, ["meshnode 1.5 runs in place of 1.0, which is installed"]),
        ({"problem": "it has expired"}, ["meshnode 1.0 runs", "no update: it has expired"]),
        (
            {"enabled": False},
            ["meshnode 1.0 runs", "updates are off; docs/updates.md says which settings turn them on"],
        ),
        (
            {"checked": None, "failed": {"2.0": "it broke"}},
            ["meshnode 1.0 runs", "meshnode 2.0 was taken back: it broke"],
        ),
    ],
)
def test_status_says_what_runs_and_what_there_is(node, invoke, changes, lines):
    node.answers["GET", "/api/admin/updates"] = STATUS | changes
    assert invoke("update", "status").stdout.splitlines() == lines
    assert json.loads(invoke("update", "status", "--json").stdout) == STATUS | changes


def test_check_and_apply_ask_the_node(node, invoke):
    node.answers["POST", "/api/admin/updates/check"] = STATUS | {"available": THERE}
    node.answers["POST", "/api/admin/updates/apply"] = (202, STATUS | {"available": THERE, "installed": "2.0"})
    assert "meshnode 2.0 is there" in invoke("update", "check").stdout
    assert "meshnode 2.0 is installed, and the node restarts into it" in invoke("update", "apply").stdout


def test_a_refusal_is_one_line(node, invoke):
    words = "there is nothing to apply: meshnode 1.0 is the newest"
    node.answers["POST", "/api/admin/updates/apply"] = (409, {"error": {"message": words}})
    result = invoke("update", "apply")
    assert (result.exit_code, result.stderr) == (1, f"meshnode: {words}\n")


def test_without_a_node_the_data_folder_says_what_the_next_start_runs(invoke, tmp_path):
    save_pointer(tmp_path / "updates", Pointer(current="2.0", failed={"3.0": "it broke"}))
    off = invoke("update", "status", "--data-dir", str(tmp_path)).stdout.splitlines()
    assert off[0] == f"no node runs; the next start runs meshnode {__version__}"
    (tmp_path / "config.toml").write_text("[updates]\nenabled = true\n")
    on = invoke("update", "status", "--data-dir", str(tmp_path)).stdout.splitlines()
    assert on == ["no node runs; the next start runs meshnode 2.0", "meshnode 3.0 was taken back: it broke"]
    assert invoke("update", "check", "--data-dir", str(tmp_path)).exit_code == 1


def test_a_publisher_makes_keys_a_release_and_signatures(invoke, tmp_path):
    wheel, document, key = tmp_path / "meshnode-9.1.0-py3-none-any.whl", tmp_path / "release.json", tmp_path / "key"
    wheel.write_bytes(make_wheel("9.1.0"))
    public = invoke("update", "key", str(key)).stdout.strip()
    assert (
        "sign it with" in invoke("update", "release", str(wheel), "--sequence", "2", "--output", str(document)).stdout
    )
    signed = invoke("update", "sign", str(document), "--key", str(key)).stdout
    assert signed.startswith(f"{public} has signed meshnode 9.1.0, sequence 2, which expires 20")
    assert json.loads(document.read_text())["signatures"][0]["key"] == public
    assert json.loads(invoke("update", "sign", str(document), "--key", str(key), "--json").stdout)["key"] == public
    assert invoke("update", "release", str(key), "--sequence", "2").exit_code == 1
    nowhere = str(tmp_path / "nowhere" / "release.json")
    assert "cannot write" in invoke("update", "release", str(wheel), "--sequence", "2", "--output", nowhere).stderr


@pytest.mark.parametrize("command", [[], ["status"], ["check"], ["apply"], ["key"], ["release"], ["sign"]])
def test_every_command_has_help(invoke, command):
    assert invoke("update", *command, "--help").exit_code == 0
