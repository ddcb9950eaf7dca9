"""Meshes of real nodes: each a process of its own, with a folder, a key and a worker of its own."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import httpx
import psutil
from starter import starter_wheel

_PATIENCE = 180.0  # seconds for a node to be ready, or for a mesh to know itself
TRACED = (str(Path(__file__).with_name("traced_node.py")),)
PLAIN = ("-m", "meshnode")


@attrs.define(eq=False)
class Answer:
    """What one streamed request gave."""

    asked: float  # time.monotonic(), as all times here
    text: str = ""
    route: str = ""
    came: list[float] = attrs.field(factory=list)  # when each piece of text came
    ended: bool = False
    error: str = ""
    notes: str = ""
    tokens: int = 0  # of the answer
    prompt_tokens: int = 0

    @property
    def to_first(self) -> float:
        """Seconds from the question to the first piece."""
        return self.came[0] - self.asked

    @property
    def per_token(self) -> float:
        """Seconds, from the first piece to the last."""
        return (self.came[-1] - self.came[0]) / (self.tokens - 1)

    def longest_gap(self, since: float = 0.0) -> float:
        """Return the seconds of the longest silence that ended after `since`."""
        pairs = zip(self.came, self.came[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later >= since), default=0.0)

    @property
    def stages(self) -> list[str]:
        """The ends of the peer ids of its first route."""
        return [stage.split()[0] for stage in self.route.split(" > ")]

    @property
    def recoveries(self) -> int:
        found = re.search(r"x-meshnode-recovered: (\d+)", self.notes)
        return int(found[1]) if found else 0


@attrs.define(eq=False)
class MeshNode:
    """One node, from its start until it is ended."""

    name: str
    folder: Path
    process: "subprocess.Popen[bytes]"
    holds: bool  # blocks
    http: httpx.Client = attrs.field(init=False)

    def wait(self) -> "MeshNode":
        """Wait until it is ready."""
        until(self._is_ready, f"{self.name} is ready", self._check)
        return self

    def _is_ready(self) -> bool:
        said = json.loads((self.folder / "runtime.json").read_text())
        url, key = f"http://{said['host']}:{said['port']}", (self.folder / "api_key").read_text().strip()
        if httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).status_code != 200:
            return False
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False)
        return True

    def _check(self) -> None:
        if self.process.poll() is not None:
            log = (self.folder / "log").read_text(errors="replace")
            raise SystemExit(f"{self.name} ended with code {self.process.returncode}: {log[-2000:]}")

    def status(self) -> dict[str, Any]:
        return self.http.get("/api/admin/status").json()

    def cpu(self) -> float:
        """Return the seconds of processor time its daemon has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the daemon and its worker: what happens to a machine happens to both."""
        daemon = psutil.Process(self.process.pid)
        for each in [daemon, *daemon.children(recursive=True)]:
            each.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Mesh:
    """Nodes by name; all end with the context."""

    def __init__(self, folder: Path, threads: int, program: Sequence[str] = PLAIN, **settings: str) -> None:
        self.nodes: dict[str, MeshNode] = {}
        self.traces = folder / "traces"
        self.traces.mkdir(parents=True)
        self._folder, self._threads, self._program = folder, threads, program
        self._settings = {
            "MESHNODE_NETWORK_HOST": "127.0.0.1",
            "MESHNODE_HUB_WATCH": "false",
            "MESHNODE_NETWORK_NETWORK_ID": f"bench-{secrets.token_hex(8)}",
            "MESHNODE_STARTER_WHEEL": str(starter_wheel()),
            "BENCH_TRACES": str(self.traces),
            **settings,
        }
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(
        self, name: str, *flags: str, blocks: str | None = None, inside: Sequence[str] = (), **settings: str
    ) -> MeshNode:
        """Start a node that begins with the first one of the mesh, and do not wait for it. `inside` is put before its command."""
        command = [
            *inside,
            sys.executable,
            *self._program,
            "run",
            "--data-dir",
            str(self._folder / name),
            "--no-browser",
        ]
        command += ["--port", "0", "--p2p-port", "0", "--threads", str(self._threads), *flags]
        if blocks is not None:
            command += ["--model", "starter", *(("--blocks", blocks) if blocks else ())]
        if self.nodes:
            first = next(iter(self.nodes.values()))
            found = until(lambda: first.status()["listen_addresses"], f"{first.name} listens")
            command += ["--bootstrap", found[0]]
        self._commands[name] = command, settings
        return self.restart(name)

    def restart(self, name: str) -> MeshNode:
        """Start a node (again), and do not wait for it."""
        command, settings = self._commands[name]
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        (folder / "runtime.json").unlink(missing_ok=True)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MESHNODE_")}
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, env=clean | self._settings | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        node = self.nodes[name] = MeshNode(name, folder, process, "--blocks" in command)
        self._stack.callback(node.end)
        return node

    def settle(self) -> "Mesh":
        """Wait until every node is ready and knows what all others hold."""
        for node in self.nodes.values():
            node.wait()
        for node in self.nodes.values():
            until(lambda node=node: self._knows_all(node), f"{node.name} knows the others")  # type: ignore[misc]
        return self

    def _knows_all(self, node: MeshNode) -> bool:
        peers = {peer["peer"]: peer for peer in node.status()["peers"] if peer["connected"]}
        others = [each for each in self.nodes.values() if each is not node]
        known = [(each, peers.get(each.status()["peer_id"])) for each in others]
        return all(peer is not None and bool(peer["stages"]) >= each.holds for each, peer in known)

    def names(self) -> dict[str, str]:
        """Map the ends of peer ids, as routes show them, to names."""
        return {node.status()["peer_id"][-6:]: name for name, node in self.nodes.items()}


def ask(node: MeshNode, body: dict[str, Any], meanwhile: Callable[[Answer], bool | None] = lambda _: None) -> Answer:
    """Stream a chat answer, or a completion if the body has a prompt; `meanwhile` may end it by returning True."""
    answer = Answer(time.monotonic())
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    full = {"model": "starter", "temperature": 0, "stream": True, "stream_options": {"include_usage": True}} | body
    with node.http.stream("POST", path, json=full) as response:
        if response.status_code != 200:
            answer.error = response.read().decode()
            return answer
        answer.route = response.headers["x-meshnode-route"]
        for line in response.iter_lines():
            now = time.monotonic()
            if line.startswith(":"):
                answer.notes += line
            if not line.startswith("data: {"):
                answer.ended = answer.ended or line == "data: [DONE]"
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                answer.error = event["error"]["message"]
                continue
            usage = event.get("usage") or {}
            answer.tokens = usage.get("completion_tokens", answer.tokens)
            answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
            for choice in event["choices"]:
                text = choice["text"] if "prompt" in body else choice["delta"].get("content")
                if text:
                    answer.text += text
                    answer.came.append(now)
                    if meanwhile(answer):
                        return answer
    return answer


def chat(content: str, tokens: int, **options: object) -> dict[str, Any]:
    """Return the body of a request that does not end before `tokens`."""
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": tokens, "logit_bias": {"2": -100}, **options}  # 2 ends a turn


def until(find: Callable[[], Any], what: str, check: Callable[[], None] = lambda: None) -> Any:
    """Return what `find` returns as soon as it is true."""
    deadline, why = time.monotonic() + _PATIENCE, "it is not so"
    while time.monotonic() < deadline:
        check()
        try:
            if found := find():
                return found
        except (OSError, ValueError, KeyError, httpx.TransportError) as error:
            why = repr(error)
        time.sleep(0.2)  # a node takes 600 requests a minute
    raise SystemExit(f"not within {_PATIENCE:.0f} s: {what}; last of all: {why}")
