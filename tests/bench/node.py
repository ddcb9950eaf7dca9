"""A real node: `python -m meshnode run`, asked over HTTP."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import httpx
import psutil

_LONGEST_START = 120.0  # seconds


@attrs.frozen(eq=False)
class Node:
    """A node that is ready."""

    pid: int
    seconds_to_ready: float  # from the start of the process to the first 200 of /health/ready
    http: httpx.Client

    @property
    def worker_pid(self) -> int:
        (worker,) = psutil.Process(self.pid).children(recursive=True)
        return worker.pid

    @contextmanager
    def chat(self, content: str, max_tokens: int) -> Iterator["Chunks"]:
        """Stream an answer. Leaving early abandons it."""
        body = {
            "model": "starter",
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise SystemExit(f"the node answered {response.status_code}: {response.read().decode()}")
            yield Chunks(response.iter_lines())


@attrs.define(eq=False)
class Chunks:
    """The pieces of text of a streamed answer; `usage` is known at the end."""

    _lines: Iterator[str]
    usage: dict[str, int] = attrs.field(factory=dict, init=False)

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise SystemExit(f"the node broke off: {chunk['error']}")
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    yield choice["delta"]["content"]


@contextmanager
def running_node(data_folder: Path, threads: int) -> Iterator[Node]:
    """Run a node on a data folder that holds the starter, and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "meshnode", "run", "--offline", "--no-browser", "--log-level", "error"]
    command += ["--port", str(port), "--threads", str(threads), "--data-dir", str(data_folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    environment["MESHNODE_API_REQUESTS_PER_MINUTE"] = "1000000"
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as http:
            _wait_until_ready(process, http, began)
            seconds = time.perf_counter() - began
            key = (data_folder / "api_key").read_text().strip()
            http.headers["Authorization"] = f"Bearer {key}"
            yield Node(process.pid, seconds, http)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", http: httpx.Client, began: float) -> None:
    while time.perf_counter() - began < _LONGEST_START:
        if process.poll() is not None:
            raise SystemExit(f"the node ended with exit code {process.returncode}")
        try:
            if http.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"the node was not ready after {_LONGEST_START:.0f} s")
