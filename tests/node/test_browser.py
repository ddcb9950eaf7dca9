"""When a browser is opened, and with what."""

import json
import os
import subprocess
import sys
import time
import urllib.request
import webbrowser

import pytest
import trio

from meshnode.node.browser import open_page, page_address, should_open


@pytest.mark.parametrize(
    ("env", "platform", "opens"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({"DISPLAY": ""}, "linux", False),
        ({}, "darwin", True),
        ({}, "win32", True),
        ({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "linux", False),
        ({"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "darwin", False),
    ],
)
def test_it_opens_where_a_browser_can_be_expected(env, platform, opens):
    assert should_open(True, has_terminal=True, env=env, platform=platform) is opens


@pytest.mark.parametrize(("asked", "has_terminal"), [(False, True), (True, False), (False, False)])
def test_it_never_opens_unasked_or_without_a_person(asked, has_terminal):
    for platform in ("linux", "darwin", "win32"):
        assert not should_open(asked, has_terminal=has_terminal, env={"DISPLAY": ":0"}, platform=platform)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:8800", "http://127.0.0.1:8800"),
        ("http://[::1]:9", "http://[::1]:9"),
        ("http://0.0.0.0:8800", "http://127.0.0.1:8800"),
        ("http://[::]:8800", "http://[::1]:8800"),
    ],
)
def test_the_address_is_one_that_can_be_reached(url, place):
    assert page_address(url, "a+b/c") == f"{place}/#ticket=a%2Bb%2Fc"


async def test_it_opens_once_the_api_answers_and_not_before(nursery):
    opened, asked, started = trio.Event(), [], trio.Event()

    def browser(address):
        asked.append(address)
        trio.from_thread.run_sync(opened.set)
        return True

    async def run():
        await open_page(started, lambda: "http://here/#ticket=x", open_browser=browser)

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    assert asked == []
    started.set()
    with trio.fail_after(10):
        await opened.wait()
    assert asked == ["http://here/#ticket=x"]


@pytest.mark.parametrize("outcome", [False, webbrowser.Error("http://here/#ticket=x"), OSError("no")])
async def test_a_browser_that_does_not_open_is_no_trouble(outcome):
    def browser(_address):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    started = trio.Event()
    started.set()
    await open_page(started, lambda: "http://here", open_browser=browser)


@pytest.mark.processes
@pytest.mark.parametrize("extra", [(), ("--no-browser",)])
def test_a_node_on_a_terminal_lets_a_browser_in_unless_told_not_to(tmp_path, extra):
    """The browser is a program of ours: $BROWSER is how people choose one."""
    shown, program = tmp_path / "shown", tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {shown}.new && mv {shown}.new {shown}\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "SSH_"))}
    env = {**kept, "DISPLAY": ":0", "BROWSER": f"{program} %s"}
    data = tmp_path / "data"
    command = [sys.executable, "-m", "meshnode", "run", "--offline", "--port", "0", "--data-dir", str(data), *extra]
    ours, theirs = os.openpty()
    with subprocess.Popen(command, env=env, stdout=theirs, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if json.loads(line)["event"] == "node is serving":
                    break
            url = json.loads(line)["url"]
            if extra:
                time.sleep(1)  # it has had its chance
            else:
                address = read_when_there(shown)
                assert address.startswith(f"{url}/#ticket=")
                request = urllib.request.Request(f"{url}/dashboard/ticket", address.rpartition("=")[2].encode())
                with urllib.request.urlopen(request, timeout=10) as answer:
                    assert answer.read().decode() == (data / "api_key").read_text().strip()
        finally:
            process.terminate()
            log = process.stderr.read()
    for end in (ours, theirs):
        os.close(end)
    assert process.returncode == 0
    assert "ticket=" not in log
    assert shown.exists() is not bool(extra)


def read_when_there(path):
    for _ in range(600):
        if path.exists():
            return path.read_text().strip()
        time.sleep(0.05)
    raise AssertionError("no browser was opened")
