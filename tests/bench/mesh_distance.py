"""Nodes on hosts of their own, with a wire between them that takes its time: what distance costs, and what silence costs."""

import statistics
import time

import slow_network
from mesh_nodes import PLAIN, Mesh, ask, chat
from results import Report, Row
from setting import Setting
from slow_network import SlowNetwork

BLOCKS = {"near": "0:10", "far": "10:20", "farther": "20:30"}
DELAY = 0.05  # seconds one way
TOKENS = 48
STORY = chat("Tell me a long story about a lighthouse keeper and the sea.", TOKENS)
SETTLE, LISTEN = 60, 60  # seconds
HOW = (
    f"three stages in network namespaces of their own; {TOKENS} tokens with {1000 * DELAY:.0f} ms one way between any two hosts, over the "
    "same without a delay plus one trip round the ring of three; then, without requests or delay, IP bytes between "
    f"two of them, TCP's acknowledgements and headers included, over {LISTEN} s after {SETTLE} s of silence"
)


def measure(setting: Setting) -> Report:
    """Alternate: without the delay, with it. Then be silent."""
    if not slow_network.is_possible():
        return Report("mesh-distance", "not measured: this needs Linux, root, /dev/net/tun and the ip command", ())
    with (
        SlowNetwork(tuple(BLOCKS)) as network,
        Mesh(setting.folder / "mesh-distance", setting.threads, PLAIN) as mesh,
    ):
        for name, blocks in BLOCKS.items():
            address = network.addresses[name]
            place = {"MESHNODE_HOST": address, "MESHNODE_NETWORK_HOST": address}
            mesh.begin(name, blocks=blocks, inside=network.inside(name), **place)
            if name == "near":
                mesh.nodes[name].wait()
        mesh.settle()
        ask(mesh.nodes["near"], STORY)
        rounds = [(_per_token(mesh, network, 0.0), _per_token(mesh, network, DELAY)) for _ in range(setting.rounds)]
        network.delay = 0.0
        rates = _silence(network)
    near, far = (statistics.median(column) for column in zip(*rounds, strict=True))
    ring = len(BLOCKS) * DELAY
    beside = {"ms per token": 1000 * far, "without delay": 1000 * near, "ring": 1000 * ring}
    ratio = statistics.median(with_delay / (without + ring) for without, with_delay in rounds)
    rows = [Row(f"per token at {1000 * DELAY:.0f} ms over compute and ring", ratio, "x", at_most=1.15, beside=beside)]
    rows += [
        Row(f"idle traffic, {pair}", max(rate), "B/s", at_most=500.0, beside={"other way": min(rate)})
        for pair, rate in rates.items()
    ]
    return Report("mesh-distance", HOW, tuple(rows))


def _per_token(mesh: Mesh, network: SlowNetwork, delay: float) -> float:
    network.delay = delay
    answer = ask(mesh.nodes["near"], STORY)
    if answer.error or answer.tokens != TOKENS:
        raise SystemExit(f"{TOKENS} tokens were asked for, {answer.tokens} came: {answer.error}")
    return answer.per_token


def _silence(network: SlowNetwork) -> dict[str, tuple[float, float]]:
    """Return bytes per second each way, for each pair of hosts."""
    names = tuple(BLOCKS)
    pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
    time.sleep(SETTLE)
    before = {pair: network.between(*pair) for pair in pairs}
    time.sleep(LISTEN)
    after = {pair: network.between(*pair) for pair in pairs}
    return {
        f"{one} and {other}": tuple(
            (b - a) / LISTEN for a, b in zip(before[one, other], after[one, other], strict=True)
        )
        for one, other in pairs
    }
