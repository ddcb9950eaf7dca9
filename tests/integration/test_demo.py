"""`meshnode demo`, as a newcomer runs it: a real mesh, a node killed in the middle of an answer, and nothing left behind."""

import json
import os
import re
import subprocess
import sys

import psutil
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.starter]


def test_the_demo_loses_a_node_and_finishes_its_answer(tmp_path, starter_wheel, starter_gguf):
    cache, folders = tmp_path / "cache", tmp_path / "folders"
    (cache / "meshnode").mkdir(parents=True)
    folders.mkdir()
    (cache / "meshnode" / starter_gguf.name).hardlink_to(starter_gguf)
    places = {"XDG_CACHE_HOME": str(cache), "TMPDIR": str(folders), "MESHNODE_STARTER_WHEEL": str(starter_wheel)}
    command = [sys.executable, "-m", "meshnode", "demo", "--json", "--tokens", "24"]
    seen, told = {}, []
    with subprocess.Popen(
        command, env=os.environ | places, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        for line in demo.stderr:
            told.append(line)
            if "ready" in line:
                seen |= {child.pid: child for child in psutil.Process(demo.pid).children(recursive=True)}
        result = json.loads(demo.stdout.read() or "{}")
    said = "".join(told)
    assert demo.returncode == 0, said
    assert len(seen) >= 6  # three nodes, and the worker of each
    assert psutil.wait_procs(seen.values(), timeout=10)[1] == []
    assert list(folders.iterdir()) == []

    killed, before, after = result["killed"], result["route_before"], result["route_after"]
    assert result["recovered"] >= 1
    assert result["same_text_as_without_a_loss"] is True
    assert killed in before
    assert killed not in after
    assert [re.findall(r"\d+:\d+", route) for route in (before, after)] == [["0:15", "15:30"]] * 2
    assert result["pause_seconds"] > 0
    assert f"[{killed} killed]" in said
    for words in ("blocks 0:15 ", "blocks 15:30", "a spare", "route before", "route after", "tokens/s", "the same"):
        assert words in said
