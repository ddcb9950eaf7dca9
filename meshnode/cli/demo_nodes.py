"""The processes of `meshnode demo`: nodes on loopback, each with a folder, a key and a mesh of their own."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from meshnode.cli.address import Address, ApiKey
from meshnode.cli.client import Client
from meshnode.cli.failures import CommandFailed

__all__ = ["DemoNode", "NodePlan", "running", "share_blocks"]

_START_TIMEOUT = 180.0  # seconds for a node to be ready: slow disks, busy machines
_STOP_TIMEOUT = 15.0


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

    def wait_for(self, is_so: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Return its status once `is_so`. Raises CommandFailed when it takes too long."""
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and is_so(status):
                return status
            time.sleep(0.1)
        raise CommandFailed(f"{self.name} did not {what} within {_START_TIMEOUT:.0f} s; its log: {self.folder / 'log'}")

    def kill(self) -> None:
        """End it as a power cut would: the worker goes with its daemon."""
        self.process.send_signal(signal.SIGKILL)


@contextmanager
def running(
    plan: NodePlan, folder: Path, *, model: str, network: str, bootstrap: tuple[str, ...]
) -> Iterator[DemoNode]:
    """Start a node that nobody outside this machine can reach; leaving the context ends it."""
    folder.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "meshnode", "run", "--data-dir", str(folder), "--port", "0", "--p2p-port", "0"),
        *("--model", model, "--blocks", plan.blocks, "--threads", "1", "--no-browser"),
        *(part for address in bootstrap for part in ("--bootstrap", address)),
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    wheel = os.environ.get("MESHNODE_STARTER_WHEEL")
    environment = clean | {
        "MESHNODE_NETWORK_HOST": "127.0.0.1",
        "MESHNODE_NETWORK_NETWORK_ID": network,
        "MESHNODE_HUB_WATCH": "false",
    }
    if wheel:
        environment["MESHNODE_STARTER_WHEEL"] = wheel
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield DemoNode(plan, folder, process)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT)
    if process.poll() is None:
        process.kill()
    process.wait()
