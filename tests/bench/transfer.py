"""Shards from one node to another on this machine: how fast they come, and what that costs a stream which the giver serves."""

import statistics
import subprocess
import threading
import time

from mesh_nodes import Mesh, MeshNode, ask, chat, until
from results import Report, Row, spread
from setting import Setting
from shaped_link import HERE, THERE, ShapedLink
from support.tiny_gguf import write_tiny_llama

TOKENS = 96
NAME = "bulky"
STORY = chat("Tell me a long story about a lighthouse keeper and the sea.", TOKENS)
HOW = (
    "two nodes on loopback, a model of 550 MB in F16; from `models add NAME` on one until every shard has come from the other, is "
    f"verified, synced to the disk and in its place. Beside it {TOKENS} tokens streamed by the giver, with one thread, in turns while "
    "nothing and while shards are fetched again and again. Then, as root on Linux, the same over a wire of 1 Gbit/s between two hosts. "
    "Last two stages, the first of them the giver, with a wire of 100 Mbit/s between them, on which activations and shards meet"
)
FAST, SLOW = 1e9, 1e8  # bits per second


def measure(setting: Setting) -> Report:
    """Fetch, forget, and fetch again; then stream with and without."""
    folder = setting.folder / "transfer"
    folder.mkdir()
    model = write_tiny_llama(
        folder / "bulky.gguf", name=NAME, quantization="F16", blocks=10, hidden=1024, heads=8, feed_forward=8192
    )
    with Mesh(folder / "mesh", setting.threads) as mesh:
        giver = mesh.begin("giver", blocks="").wait()  # both serve the starter, so that neither loads the other model
        taker = mesh.begin("taker", blocks="").wait()
        _add(giver, str(model))
        until(lambda: _can_fetch(taker), "the taker hears of the model")
        size = _size(giver)
        rates = [size / _fetch(taker) / 1e6 for _ in range(setting.rounds + 1)][1:]
        lost = _lost(giver, taker, setting.rounds, "decode speed lost while giving")
    rate = Row(
        "transfer of one pair", statistics.median(rates), "MB/s", at_least=400.0, beside={"spread": spread(rates)}
    )
    rows = (rate, lost, *_over_a_wire(setting, str(model), size), *_among_activations(setting))
    return Report("transfer", HOW, rows)


def _over_a_wire(setting: Setting, model: str, size: int) -> list[Row]:
    """Fetch over a link of 1 Gbit/s, where such a link can be made."""
    try:
        with ShapedLink(FAST) as link, Mesh(setting.folder / "transfer" / "wire", setting.threads) as mesh:
            place = {"MESHNODE_HOST": THERE, "MESHNODE_NETWORK_HOST": THERE}
            giver = mesh.begin("giver", blocks="", inside=link.inside(), **place).wait()
            taker = mesh.begin("taker", blocks="", MESHNODE_NETWORK_HOST=HERE).wait()
            _add(giver, model)
            until(lambda: _can_fetch(taker), "the taker hears of the model")
            shares = [8 * size / _fetch(taker) / FAST for _ in range(min(3, setting.rounds))]
            lost = _lost(giver, taker, setting.rounds, "decode speed lost while giving at 1 Gbit/s")
    except (OSError, subprocess.CalledProcessError):
        return []  # it needs root, and a kernel with veth and tbf
    return [Row("of a link of 1 Gbit/s, used", statistics.median(shares), "x", at_least=0.8), lost]


def _among_activations(setting: Setting) -> list[Row]:
    """Stream through both ends of a slow wire, where such a wire can be made."""
    folder = setting.folder / "transfer" / "slow"
    try:
        with ShapedLink(SLOW) as link, Mesh(folder, setting.threads) as mesh:
            model = write_tiny_llama(
                folder / "bulky.gguf", name=NAME, quantization="F16", blocks=4, hidden=512, heads=8, feed_forward=4096
            )
            place = {"MESHNODE_HOST": THERE, "MESHNODE_NETWORK_HOST": THERE}
            giver = mesh.begin("giver", blocks="0:15", inside=link.inside(), **place).wait()
            taker = mesh.begin("taker", blocks="15:30", MESHNODE_NETWORK_HOST=HERE)
            mesh.settle()
            _add(giver, str(model))
            until(lambda: _can_fetch(taker), "the taker hears of the model")
            lost = _lost(
                giver, taker, setting.rounds, "decode speed lost where activations and shards share 100 Mbit/s"
            )
            fetched = 8 * _size(giver) / _fetch(taker) / SLOW
    except (OSError, subprocess.CalledProcessError):
        return []
    return [lost, Row("of a link of 100 Mbit/s, used when no activations pass", fetched, "x", at_least=0.8)]


def _lost(giver: MeshNode, taker: MeshNode, rounds: int, title: str) -> Row:
    """Stream in turns while nothing is fetched and while something is."""
    ask(giver, STORY)
    pairs = []
    with _Fetching(taker) as fetching:
        for _ in range(rounds):
            fetching.pause()
            alone = _decode(giver)
            fetching.resume()
            pairs.append((alone, _decode(giver)))
    falls = [100 * (1 - meanwhile / alone) for alone, meanwhile in pairs]
    beside = {"spread": spread(falls), "tokens/s alone": statistics.median(alone for alone, _ in pairs)}
    return Row(title, statistics.median(falls), "%", at_most=10.0, beside=beside)


def _add(node: MeshNode, reference: str) -> None:
    node.http.post("/api/admin/models", json={"reference": reference}).raise_for_status()


def _can_fetch(node: MeshNode) -> bool:
    return node.http.post("/api/admin/models", json={"reference": NAME}).status_code == 201


def _size(node: MeshNode) -> int:
    rows = node.http.get("/api/admin/models").json()["models"]
    return next(row["nbytes"] for row in rows if row["name"] == NAME)


def _fetch(node: MeshNode) -> float:
    """Forget the model and fetch it again; return the seconds of the latter."""
    node.http.delete(f"/api/admin/models/{NAME}").raise_for_status()
    began = time.monotonic()
    _add(node, NAME)
    return time.monotonic() - began


def _decode(node: MeshNode) -> float:
    """Return the tokens per second of one stream."""
    answer = ask(node, STORY)
    if answer.error or answer.tokens != TOKENS:
        raise SystemExit(f"{TOKENS} tokens were asked for, {answer.tokens} came: {answer.error}")
    return 1 / answer.per_token


class _Fetching:
    """Fetches again and again in a thread, unless it is paused."""

    def __init__(self, node: MeshNode) -> None:
        self._node, self._goes, self._rests, self._ends = node, threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> "_Fetching":
        self._rests.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._goes.set()
        self._thread.join()

    def pause(self) -> None:
        """Return once nothing is fetched."""
        self._goes.clear()
        self._rests.wait()

    def resume(self) -> None:
        """Return once fetching goes on."""
        self._rests.clear()
        self._goes.set()
        time.sleep(0.3)

    def _work(self) -> None:
        while not self._ends:
            if not self._goes.is_set():
                self._rests.set()
            self._goes.wait()
            if not self._ends:
                _fetch(self._node)
