"""What it costs a node to know many others that say nothing."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
from mesh_nodes import Mesh, until
from results import Report, Row
from setting import Setting

PEERS = 100
SETTLE, LISTEN = 60, 60  # seconds
PROGRAM = str(Path(__file__).with_name("hundred_peers.py"))
HOW = (
    f"a node linked to {PEERS} others, all in one other process, each with its own key, host and connection; processor "
    f"time of its daemon over {LISTEN} s, after {SETTLE} s of silence; heartbeats go on"
)


def measure(setting: Setting) -> Report:
    """Look at the same node alone, then among many."""
    network = "bench-idle"
    settings = {"MESHNODE_NETWORK_NETWORK_ID": network, "MESHNODE_NETWORK_MAX_PEERS": str(PEERS + 20)}
    with Mesh(setting.folder / "mesh-idle", setting.threads, **settings) as mesh:
        node = mesh.begin("node", blocks="0:10").wait()
        time.sleep(5)
        alone = _share(node.cpu)
        (address,) = until(lambda: node.status()["listen_addresses"], "the node listens")[:1]
        command = [sys.executable, PROGRAM, str(PEERS), network, address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as others:
            try:
                until(lambda: _linked(node.status()) >= PEERS, f"{PEERS} peers are linked")
                time.sleep(SETTLE)
                other = psutil.Process(others.pid)
                theirs = sum(other.cpu_times()[:2])
                among = _share(node.cpu)
                theirs = 100 * (sum(other.cpu_times()[:2]) - theirs) / LISTEN / PEERS
                linked = _linked(node.status())
            finally:
                others.kill()
    if linked < PEERS:
        raise SystemExit(f"only {linked} of {PEERS} peers were still linked at the end")
    beside = {"without peers": alone, "each of the others": theirs}
    row = Row(f"processor time with {PEERS} idle peers", among, "% of a core", at_most=3.0, beside=beside)
    return Report("mesh-idle", HOW, (row,))


def _share(cpu) -> float:
    """Return the percentage of one core used while nothing happens."""
    before = cpu()
    time.sleep(LISTEN)
    return 100 * (cpu() - before) / LISTEN


def _linked(status: dict) -> int:
    return sum(peer["connected"] for peer in status["peers"])
