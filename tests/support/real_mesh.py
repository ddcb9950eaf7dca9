"""A mesh of real nodes on loopback, each a process of its own, and answers streamed from it."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import attrs
import httpx
from support.real_node import Node

__all__ = ["CRASHING", "Answer", "Mesh", "ask", "command", "eventually"]

CRASHING = ("-m", "support.crashing_node")
"""What Python runs for a node whose libp2p crashes at SIGUSR1."""

_PATIENCE = 60  # seconds; what takes longer has failed, on however busy a machine


def command(*arguments, **settings):
    """Run a command of the command line and return what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    line = [sys.executable, "-m", "meshnode", *map(str, arguments)]
    done = subprocess.run(line, env=kept | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def eventually(find, what, patience=_PATIENCE):
    """Return what `find` returns as soon as it is true."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := find():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {patience} s: {what}")


@attrs.define
class Answer:
    """What one streamed request gave."""

    status: int = 0
    route: str = ""
    text: str = ""
    finish_reason: str | None = None
    error: dict | None = None
    is_done: bool = False
    notes: str = ""  # the stream's comments
    pieces: int = 0

    @property
    def outcome(self):
        """What must not depend on who computed it."""
        return self.text, self.finish_reason, self.error, self.is_done

    @property
    def recovered(self):
        found = re.search(r"x-meshnode-recovered: (\d+)", self.notes)
        return int(found[1]) if found else 0

    @property
    def last_route(self):
        found = re.search(r"route=(.*)", self.notes)
        return found[1] if found else self.route


def ask(node, body, *, meanwhile=None):
    """Stream an answer; `meanwhile` is called with it after each piece, and ends the reading by returning True."""
    answer = Answer()
    try:
        _read(node, body, answer, meanwhile)
    except httpx.TransportError as error:  # what a node does to none of its clients: its log may say why it did
        raise AssertionError(f"{error}; the answer so far: {answer}; the node: {node.log[-20:]}") from error
    return answer


def _read(node, body, answer, meanwhile):
    with node.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        answer.status, answer.route = response.status_code, response.headers.get("x-meshnode-route", "")
        if answer.status != 200:
            answer.error = json.loads(response.read())["error"]
            return
        for line in response.iter_lines():
            if line.startswith(":"):
                answer.notes += line
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                answer.is_done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            answer.error = event.get("error")
            for choice in event.get("choices", ()):
                answer.finish_reason = choice["finish_reason"] or answer.finish_reason
                if choice["delta"].get("content"):
                    answer.text += choice["delta"]["content"]
                    answer.pieces += 1
                    if meanwhile is not None and meanwhile(answer):
                        return


class Mesh:
    """Nodes by name; all end with the context."""

    def __init__(self, root, wheel):
        self.root, self.nodes, self.network_id = root, {}, f"test-{secrets.token_hex(8)}"
        self._plans, self._ids = {}, {}
        self._environment = {
            "MESHNODE_NETWORK_HOST": "127.0.0.1",
            "MESHNODE_NETWORK_NETWORK_ID": self.network_id,
            "MESHNODE_STARTER_WHEEL": str(wheel),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        self._stack = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def folder(self, name):
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        return folder

    def begin(self, name, *arguments, blocks=None, bootstrap=None, program=("-m", "meshnode"), **settings):
        """Start a node and do not wait for it. `bootstrap` names one that runs; `program` is what Python runs.

        Further settings are variables of the environment; None takes away one that all nodes have.
        """
        plan = ["--p2p-port", "0", "--threads", "1", *arguments]
        if blocks is not None:
            plan += ["--model", "starter", "--blocks", blocks]
        if bootstrap is not None:
            plan += ["--bootstrap", self.status(bootstrap)["listen_addresses"][0]]
        self._plans[name] = plan, program, settings
        self._spawn(name)

    def start(self, name, *arguments, **extra):
        """Start a node and wait until it is ready."""
        self.begin(name, *arguments, **extra)
        return self.nodes[name].__enter__()

    def restart(self, name, **settings):
        """Start a node again that has ended, in its old folder, with further settings if need be."""
        plan, program, before = self._plans[name]
        self._plans[name] = plan, program, {**before, **settings}
        self._spawn(name)
        return self.nodes[name].__enter__()

    def _spawn(self, name):
        plan, program, settings = self._plans[name]
        folder = self.folder(name)
        (folder / "runtime.json").unlink(missing_ok=True)  # of an incarnation that was killed
        environment = {key: value for key, value in {**self._environment, **settings}.items() if value is not None}
        node = self.nodes[name] = Node(folder, *plan, program=program, **environment)
        self._stack.push(node)

    def end(self, name):
        """End a node as a power cut would; one that has not been started is none."""
        if name in self.nodes:
            self.nodes.pop(name).__exit__()

    def signal(self, name, number):
        """Send a signal to a node and its workers: what happens to a machine happens to both, and workers go on by themselves."""
        node = self.nodes[name]
        for each in (*node.workers(), node.process):
            each.send_signal(number)

    def status(self, name):
        return self.nodes[name].http.get("/api/admin/status").json()

    def metric(self, name, metric):
        lines = self.nodes[name].http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{metric}[ {{]", line))

    def peer_id(self, name):
        """Return who a node is; it stays that over restarts."""
        if name not in self._ids:
            self._ids[name] = self.status(name)["peer_id"]
        return self._ids[name]

    def names(self, route):
        """Return the names of the nodes of a route."""
        ends = {self.peer_id(name)[-6:]: name for name in self.nodes} | {
            peer[-6:]: name for name, peer in self._ids.items()
        }
        return [ends[stage.split()[0]] for stage in route.split(" > ")]

    def links(self, name):
        """Return the names of the nodes that a node has a link to, and whose offer it has if they hold something."""
        names = {self.peer_id(other): other for other in self.nodes}
        rows = [row for row in self.status(name)["peers"] if row["connected"] and row["peer"] in names]
        return {
            names[row["peer"]] for row in rows if row["stages"] or "--blocks" not in self._plans[names[row["peer"]]][0]
        }
