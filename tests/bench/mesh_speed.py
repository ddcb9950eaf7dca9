"""What it costs to answer with several nodes instead of one, on one machine with the same threads for all."""

import statistics
import time

from mesh_nodes import TRACED, Answer, Mesh, MeshNode, ask, chat
from mesh_traces import Traces, percentile
from results import Report, Row
from setting import Setting

TOKENS = 96
STORY = {
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and the sea."}],
    "max_tokens": TOKENS,
}
LONG = "The keeper of the lighthouse wrote down what the sea had brought. " * 100  # some 1,400 tokens
BOUNDARY_GOALS = {50: 2.0, 99: 5.0}  # milliseconds
HOW = (
    f"nodes on loopback, {TOKENS} tokens streamed, one after another in every round: one process with all blocks, two "
    "stages, three stages; ratios are paired by round. Borders: from the end of one stage's work on a token to the beginning of the "
    "next one's, in the workers, all tokens of all rounds; the way back to the first stage includes choosing and telling "
    "the token"
)


def measure(setting: Setting) -> Report:
    """Alternate: one process, two stages, three stages."""
    folder = setting.folder / "mesh-speed"
    with (
        Mesh(folder / "one", setting.threads, TRACED) as one,
        Mesh(folder / "two", setting.threads, TRACED) as two,
        Mesh(folder / "three", setting.threads, TRACED) as three,
    ):
        one.begin("all", blocks="", MESHNODE_NETWORK_ENABLED="false")
        _split(two, 2)
        _split(three, 3)
        meshes = {"one": one.settle(), "two": two.settle(), "three": three.settle()}
        entries = {name: next(iter(mesh.nodes.values())) for name, mesh in meshes.items()}
        for node in entries.values():
            ask(node, STORY)
        began = time.monotonic()
        rounds = [{name: _decode(node) for name, node in entries.items()} for _ in range(setting.rounds)]
        middle = time.monotonic()
        readings = [_read(entries, number) for number in range(min(setting.rounds, 5))]
        ended = time.monotonic()
        decoding = {name: Traces.read(mesh.traces, began, middle) for name, mesh in meshes.items()}
        reading = {name: Traces.read(mesh.traces, middle, ended) for name, mesh in meshes.items()}
    return Report(
        "mesh-speed",
        HOW,
        (*_borders(decoding), *_ratios(rounds), *_negotiations(decoding), *_prefill(readings, reading)),
    )


def _split(mesh: Mesh, stages: int) -> None:
    for index in range(stages):
        node = mesh.begin(f"stage{index}", blocks=f"{30 * index // stages}:{30 * (index + 1) // stages}")
        if not index:
            node.wait()


def _read(entries: dict[str, MeshNode], number: int) -> dict[str, Answer]:
    """Have everybody read a prompt that nobody has pages of."""
    body = chat(f"Chapter {number}. {LONG}", 4)
    return {name: ask(node, body) for name, node in entries.items()}


def _decode(node: MeshNode) -> float:
    answer: Answer = ask(node, STORY)
    if answer.error or answer.tokens != TOKENS:
        raise SystemExit(f"{TOKENS} tokens were asked for, {answer.tokens} came: {answer.error}")
    return 1 / answer.per_token


def _borders(decoding: dict[str, Traces]) -> list[Row]:
    rows = []
    for name in ("two", "three"):
        forward, closing = ([1000 * gap for gap in gaps] for gaps in decoding[name].borders())
        for percent, goal in BOUNDARY_GOALS.items():
            beside = {"between": percentile(forward, percent), "way back": percentile(closing, percent)}
            value = percentile(forward + closing, percent)
            title = f"added per border and token, {name} stages, p{percent}"
            rows.append(Row(title, value, "ms", at_most=goal, beside=beside))
    return rows


def _ratios(rounds: list[dict[str, float]]) -> list[Row]:
    rows = []
    for name in ("two", "three"):
        ratio = statistics.median(each[name] / each["one"] for each in rounds)
        beside = {side: statistics.median(each[side] for each in rounds) for side in (name, "one")}
        goal = 0.9 if name == "two" else None
        rows.append(Row(f"tokens/s of {name} stages over one process", ratio, "x", at_least=goal, beside=beside))
    return rows


def _negotiations(decoding: dict[str, Traces]) -> list[Row]:
    opened = sum(len(traces.opened) for traces in decoding.values())
    tokens = sum(1 for name in ("two", "three") for each in decoding[name].computed if each.rows == 1)
    beside = {"steps of stages meanwhile": tokens}
    return [Row("streams and links opened while decoding", opened, "", at_most=0, beside=beside)]


def _prefill(readings: list[dict[str, Answer]], reading: dict[str, Traces]) -> list[Row]:
    rows = []
    for name in ("two", "three"):
        ratio = statistics.median(each["one"].to_first / each[name].to_first for each in readings)
        beside = {
            "stages at once": _overlap(reading[name], readings, name),
            "seconds": statistics.median(each[name].to_first for each in readings),
            "one process": statistics.median(each["one"].to_first for each in readings),
            "tokens": readings[0][name].prompt_tokens,
        }
        rows.append(Row(f"prefill of {name} stages over one process", ratio, "x", at_least=1.0, beside=beside))
    return rows


def _overlap(traces: Traces, readings: list[dict[str, Answer]], name: str) -> float:
    parts = [
        Traces(tuple(each for each in traces.computed if answer.asked <= each.began <= answer.came[0]), (), {})
        for answer in (each[name] for each in readings)
    ]
    return statistics.median(part.overlap() for part in parts)
