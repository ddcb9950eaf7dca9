"""What a real node says to bad input, and that it serves on as if nothing had been."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from support.real_node import Node
from support.tiny_gguf import TEMPLATE, write_tiny_llama

from meshnode.cli.main import root
from meshnode.config.paths import DataPaths

pytestmark = pytest.mark.processes

HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "good", "messages": HI, "max_tokens": 4}


def command(*arguments):
    """Run a command of the command line without a node."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    return subprocess.run(
        [sys.executable, "-m", "meshnode", *map(str, arguments)], env=kept, capture_output=True, text=True, check=False
    )


def here(*arguments):
    """The same in this process, which has imported everything."""
    return CliRunner().invoke(root, list(map(str, arguments)))


def add(path, folder):
    result = here("models", "add", path, "--data-dir", folder)
    assert result.exit_code == 0, result.stderr


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One node for all: it has a good model, and one whose template never ends."""
    folder, files = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("files")
    named = "{% if tools %}{{ tools | map(attribute='function.name') | join }}<tool_call>{% endif %}"
    add(write_tiny_llama(files / "good.gguf", name="Good", template=named + TEMPLATE), folder)
    endless = "{% for i in range(10**12) %}{{ messages[0].content }}{% endfor %}"
    add(write_tiny_llama(files / "endless.gguf", name="Endless", seed=1, template=endless), folder)
    with Node(folder, "--offline", "--threads", "1", "--model", "good", "--model", "endless") as node:
        yield node


def post(node, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return node.http.post("/v1/chat/completions", content=raw, headers={"Content-Type": "application/json"})


BAD = {
    "cut JSON": (b'{"model": "good", "messages": [', 400, "not valid JSON"),
    "no JSON": (b"hello", 400, "not valid JSON: "),
    "no UTF-8": (b'{"model": "\xff"}', 400, "not UTF-8"),
    "no object": (b"[1, 2]", 400, "Expected `object`"),
    "a wrong type": (CHAT | {"temperature": "hot"}, 400, "temperature"),
    "messages of a wrong type": (CHAT | {"messages": "hi"}, 400, "messages"),
    "no messages at all": ({"model": "good"}, 400, "'messages' is needed"),
    "empty messages": (CHAT | {"messages": []}, 400, "messages"),
    "an unknown field": (CHAT | {"temprature": 1}, 400, "temprature"),
    "an unknown model": (CHAT | {"model": "nobody"}, 404, "good"),
    "a negative temperature": (CHAT | {"temperature": -1}, 400, "temperature"),
    "a negative count": (CHAT | {"max_tokens": -5}, 400, "max_tokens"),
    "forty stops": (CHAT | {"stop": [f"stop {number}" for number in range(40)]}, 400, "stop"),
    "10 MB": (CHAT | {"messages": [{"role": "user", "content": "x" * 10_000_000}]}, 413, "8388608 bytes"),
    "longer than the context": (CHAT | {"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "1024"),
    "an endless template": (CHAT | {"model": "endless"}, 400, "chat template"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_are_refused_by_name_and_the_next_one_is_served(node, what):
    body, status, words = BAD[what]
    answer = post(node, body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert post(node, CHAT).status_code == 200


NOT_NUMBERS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b'"nan"', b"-0x1", b"null null"]


@pytest.mark.parametrize("number", NOT_NUMBERS)
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "logit_bias"]
)
def test_what_is_no_number_never_reaches_the_sampler(node, name, number):
    value = b'{"5": %s}' % number if name == "logit_bias" else number
    body = b'{"model": "good", "messages": [{"role": "user", "content": "hi"}], "%s": %s}' % (name.encode(), value)
    answer = post(node, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_prompt_longer_than_the_context_is_told_both_numbers(node):
    message = post(node, BAD["longer than the context"][0]).json()["error"]["message"]
    assert "1024" in message
    assert [int(word) for word in message.split() if word.isdecimal() and 5000 <= int(word) < 5100]


def test_of_two_hundred_tools_one_is_called(node):
    empty = {"type": "object", "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": f"t{number}", "parameters": empty}} for number in range(200)]
    body = CHAT | {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 128}
    (choice,) = post(node, body).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in [tool["function"]["name"] for tool in tools]
    assert (json.loads(call["function"]["arguments"]), choice["finish_reason"]) == ({}, "tool_calls")


# A kilobyte for each token, and none of them the last.
LONG = CHAT | {
    "max_tokens": 900,
    "stream": True,
    "logprobs": True,
    "top_logprobs": 20,
    "logit_bias": {"0": -100, "2": -100},
}


def connect(node):
    """Ask for LONG and read nothing of it: there is hardly any room for it on the way."""
    url = httpx.URL(node.url)
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect((url.host, url.port))
    body = json.dumps(LONG).encode()
    key = node.http.headers["Authorization"]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n"
    line.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return line


def held(node):
    """Return how many sessions there are, and how many bytes of caches."""
    lines = [line.split() for line in node.http.get("/metrics").text.splitlines()]
    names = ("meshnode_inference_active_sessions", "meshnode_engine_cache_bytes")
    return tuple(float(next(line[1] for line in lines if line[0] == name)) for name in names)


def eventually(found):
    deadline = time.monotonic() + 10
    while not found() and time.monotonic() < deadline:
        time.sleep(0.02)
    return found()


def cut_off(node):
    return [line for line in node.log if line["event"] == "request" and line["outcome"] == "cut off"]


def test_clients_that_vanish_leave_nothing_behind(node):
    earlier = len(cut_off(node))
    lines = [connect(node) for _ in range(5)]
    assert all(b"200" in line.recv(100) for line in lines)
    assert eventually(lambda: held(node)[1] > 0)
    for line in lines:
        line.close()
    assert eventually(
        lambda: held(node) == (0, 0)
    )  # within 0.6 s where it was measured, on a machine with much else to do
    assert eventually(lambda: len(cut_off(node)) == earlier + 5)
    assert post(node, CHAT).status_code == 200


def test_a_client_that_never_reads_waits_and_does_not_hold_up_the_others(node):
    earlier = len(cut_off(node))
    with connect(node):
        for _ in range(5):
            assert post(node, CHAT).status_code == 200
        assert post(node, LONG | {"max_tokens": 250}).text.count('"top_logprobs"') == 250
        assert held(node)[0] == 1
    assert eventually(lambda: len(cut_off(node)) == earlier + 1)
    assert (
        0 < cut_off(node)[-1]["completion_tokens"] < 250
    )  # though it was the first to ask: what it left unread is not made


def test_the_worker_killed_in_the_middle_of_an_answer_costs_no_word_of_it(node):
    body = CHAT | {"max_tokens": 300, "temperature": 0, "stream": True}

    def answer(disturb=False):
        text, done = "", False
        with node.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            for line in reply.iter_lines():
                done = done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    if disturb and text:
                        disturb = False
                        for worker in node.workers():
                            worker.send_signal(signal.SIGKILL)
        assert done
        return text

    whole = answer()
    assert answer(disturb=True) == whole
    assert post(node, CHAT).status_code == 200


def test_a_flipped_bit_is_quarantined_and_never_loaded(tmp_path):
    paths = DataPaths(tmp_path / "data")
    source = write_tiny_llama(tmp_path / "m.gguf", name="Good")
    add(source, paths.root)
    source.unlink()  # so that it cannot be made again
    victim = max((path for path in paths.shards.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.chmod(0o600)
    victim.write_bytes(raw)
    with Node(paths.root, "--offline", until_ready=False) as node:
        deadline = time.monotonic() + 60
        while victim.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [path.read_bytes() for path in paths.quarantine.rglob("*") if path.is_file()] == [bytes(raw)]
        answer = post(node, CHAT)
        assert answer.status_code == 503, answer.text
        conditions = node.http.get("/api/admin/status").json()["conditions"]
        assert any(row["code"] == "model_incomplete" and "good" in row["text"] for row in conditions)
        maps = [entry.path for worker in node.workers() for entry in worker.memory_maps()]
        assert not [path for path in maps if victim.name in path]  # what is whole of the model may be, for other nodes


def test_what_comes_on_a_stick_answers_without_a_network_and_what_is_damaged_there_is_refused(node, tmp_path):
    stick, elsewhere, ours = tmp_path / "stick", tmp_path / "elsewhere", ("--data-dir", node.folder)
    add(write_tiny_llama(tmp_path / "m.gguf", name="Carried", seed=2), elsewhere)
    exported = here("models", "export", "carried", stick, "--data-dir", elsewhere)
    assert exported.stdout == f"exported carried to {stick}\n"
    shutil.rmtree(elsewhere)
    largest = max(stick.glob("*.shard"), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = here("models", "import", stick, *ours)
    assert refused.exit_code == 1
    assert largest.stem[:12] in refused.stderr.splitlines()[-1]
    largest.write_bytes(whole)
    taken = command("models", "import", stick, *ours)
    assert (taken.returncode, taken.stdout) == (0, "added carried\n"), taken.stderr
    shutil.rmtree(stick)
    said = here("chat", "hi", "--model", "carried", "--max-tokens", "4", "--json", *ours)
    assert json.loads(said.stdout)["usage"]["completion_tokens"] > 0, said.stderr
    assert here("models", "remove", "carried", *ours).stdout == "removed carried\n"


@pytest.mark.parametrize("damage", ["truncated", "wrong shape"])
def test_a_damaged_gguf_is_refused_in_one_line_and_leaves_nothing(tmp_path, damage):
    if damage == "truncated":
        path = write_tiny_llama(tmp_path / "m.gguf")
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path = write_tiny_llama(tmp_path / "m.gguf", extra={"blk.0.attn_k.weight": np.zeros((96, 256), np.float32)})
    result = command("models", "add", path, "--data-dir", tmp_path / "data")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert ("truncated" if damage == "truncated" else "should have shape (128, 256), but has (96, 256)") in line
    assert "Traceback" not in result.stderr
    assert not [path for path in (tmp_path / "data").glob("*/**/*") if path.suffix == ".safetensors"]


def test_a_full_disk_under_the_data_folder_is_one_line_and_64(tmp_path):
    (tmp_path / "runtime.new").symlink_to("/dev/full")
    result = command("run", "--offline", "--no-browser", "--port", "0", "--data-dir", tmp_path)
    assert result.returncode == 64
    (line,) = result.stderr.splitlines()
    assert f"the data folder {tmp_path} cannot be used: No space left on device" in line
