"""The processes of `meshnode demo`: nodes on loopback, each with a folder and a key of its own."""

import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from meshnode.cli.address import Address, ApiKey
from meshnode.cli.client import Client
from meshnode.cli.failures import CommandFailed

__all__ = ["DemoNode", "NodePlan", "running", "share_blocks", "wait_for"]

_START_TIMEOUT = 180.0  # seconds for a node to be ready: slow disks, busy machines
_STOP_TIMEOUT = 15.0
_LOOK_EVERY = 0.2


@attrs.frozen
class NodePlan:
    """What one node holds."""

    number: int
    blocks: str  # START:END
    is_spare: bool


def share_blocks(nodes: int, block_count: int) -> list[NodePlan]:
    """Cut the model over about half of the nodes; the others hold what the first half could lose, the first node apart."""
    stages = max(2, (nodes + 1) // 2)
    borders = [block_count * index // stages for index in range(stages + 1)]
    ranges = [f"{start}:{end}" for start, end in itertools.pairwise(borders)]
    plans = [NodePlan(index + 1, blocks, is_spare=False) for index, blocks in enumerate(ranges)]
    spares = ranges[1:]
    return plans + [
        NodePlan(stages + 1 + index, spares[index % len(spares)], is_spare=True) for index in range(nodes - stages)
    ]


@attrs.define(eq=False)
class DemoNode:
    """One running node."""

    plan: NodePlan
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        return f"node {self.plan.number}"

    def client(self) -> Client:
        """Return a client of its API."""
        said = json.loads((self.folder / "runtime.json").read_bytes())
        key = (self.folder / "api_key").read_text(encoding="ascii").strip()
        return Client(Address(str(said["host"]), int(said["port"])), ApiKey(key, f"of {self.name}"))

    def status(self) -> dict[str, Any] | None:
        """Return what it says of itself, None while it does not. Raises CommandFailed when it has ended."""
        if self.process.poll() is not None:
            last = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-3:]
            raise CommandFailed(f"{self.name} ended with code {self.process.returncode}: {' / '.join(last)}")
        try:
            client = self.client()
            found = client.get("/api/admin/status")
        except (CommandFailed, OSError, ValueError, KeyError):
            return None
        assert isinstance(found, dict)
        return found

    def kill(self) -> None:
        """End it as a power cut would: the worker goes with its daemon."""
        self.process.send_signal(signal.SIGKILL)


def wait_for(
    mesh: Sequence[DemoNode], state: Callable[[DemoNode], str], last: str, show: Callable[[DemoNode, str], None]
) -> None:
    """Look at the nodes until all are in the state `last`, and show each as often as its state is looked at.

    Raises CommandFailed when it takes too long.
    """
    deadline = time.monotonic() + _START_TIMEOUT
    waiting = list(mesh)
    while waiting:
        for node in tuple(waiting):
            now = state(node)
            show(node, now)
            if now == last:
                waiting.remove(node)
        if time.monotonic() > deadline:
            names = ", ".join(node.name for node in waiting)
            raise CommandFailed(
                f"{names}: not {last} within {_START_TIMEOUT:.0f} s; is the machine short of memory, or busy?"
            )
        time.sleep(_LOOK_EVERY)


@contextmanager
def running(plans: Sequence[NodePlan], folder: Path, model: Path) -> Iterator[list[DemoNode]]:
    """Start nodes that nobody outside this machine can reach, all at once; leaving the context ends them.

    The first one's key and port are chosen for it, so that the others know where to find it before it is there.
    """
    from meshnode.crypto.identity import load_identity

    port, network = _free_port(), f"demo-{secrets.token_hex(8)}"
    first = load_identity(folder / "node1" / "identity.key")
    known = f"/ip4/127.0.0.1/tcp/{port}/p2p/{first.peer}"
    mesh: list[DemoNode] = []
    try:
        for plan in plans:
            there = ("--p2p-port", "0", "--bootstrap", known) if mesh else ("--p2p-port", str(port))
            mesh.append(_started(plan, folder / f"node{plan.number}", model, network, there))
        yield mesh
    finally:
        for node in mesh:
            node.process.terminate()
        for node in mesh:
            _end(node.process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(plan: NodePlan, folder: Path, model: Path, network: str, there: Sequence[str]) -> DemoNode:
    folder.mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-m", "meshnode", "run", "--data-dir", str(folder), "--port", "0", *there),
        *("--model", str(model), "--blocks", plan.blocks, "--threads", "1", "--no-browser"),
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    environment = clean | {
        "MESHNODE_NETWORK_HOST": "127.0.0.1",
        "MESHNODE_NETWORK_NETWORK_ID": network,
        "MESHNODE_HUB_WATCH": "false",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    return DemoNode(plan, folder, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT)
    if process.poll() is None:
        process.kill()
    process.wait()
