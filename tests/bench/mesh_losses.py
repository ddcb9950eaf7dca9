"""What is left of an answer when a node that works on it is killed, or stands still, or when nobody wants it any more."""

import signal
import statistics
import time
from random import Random

from mesh_nodes import TRACED, Answer, Mesh, ask, chat, until
from mesh_traces import Traces, percentile
from results import Report, Row
from setting import Setting

HOLDERS = {"first": "0:10", "middle": "10:20", "last": "20:30", "middle2": "10:20", "last2": "20:30"}
TOKENS = 64
GREEDY = chat("Tell me a long story about a lighthouse keeper and the sea.", TOKENS)
BODIES = {"greedy": GREEDY, "seeded": GREEDY | {"temperature": 0.8, "seed": 7}}
PAUSES = {"kill": (signal.SIGKILL, 3.0), "freeze": (signal.SIGSTOP, 8.0)}  # and the goals, in seconds
LONG = 1000  # tokens of an answer that is to be resumed
HOW = (
    "three stages on loopback with a spare of the second and third; one of these two is struck at a random token (the daemon and "
    "its worker), greedy and with temperature 0.8 and a fixed seed; the pause is the longest silence after that"
)


def measure(setting: Setting) -> Report:
    """Strike `rounds` times each: killed and frozen, greedy and seeded."""
    with Mesh(setting.folder / "mesh-losses", setting.threads, TRACED) as mesh:
        for name, blocks in HOLDERS.items():
            mesh.begin(name, blocks=blocks)
            if name == "first":
                mesh.nodes[name].wait()
        mesh.settle()
        calm = {name: _whole(ask(mesh.nodes["first"], body), TOKENS) for name, body in BODIES.items()}
        rows = []
        for what in PAUSES:
            rows += _struck(mesh, what, calm, setting.rounds)
        rows += _abandoned(mesh, setting.rounds)
        rows += _resumed(mesh, min(3, setting.rounds))
    return Report("mesh-losses", HOW, tuple(rows))


def _struck(mesh: Mesh, what: str, calm: dict[str, Answer], rounds: int) -> list[Row]:
    number, goal = PAUSES[what]
    pauses, same = [], 0
    for index in range(rounds):
        random = Random(f"{what} {index}")
        for name, body in BODIES.items():
            answer, pause = _strike(mesh, body, number, at=random.randrange(1, TOKENS - 4), random=random)
            pauses.append(pause)
            whole = answer.ended and not answer.error and answer.recoveries > 0
            same += whole and answer.text == calm[name].text
    asked = rounds * len(BODIES)
    beside = {"p50": percentile(pauses, 50), "longest": max(pauses), "answers": asked}
    return [
        Row(f"{what}: answers complete, text the same, of {asked}", same, "", at_least=asked),
        Row(f"{what}: pause, p95", percentile(pauses, 95), "s", at_most=goal, beside=beside),
    ]


def _strike(mesh: Mesh, body: dict, number: signal.Signals, at: int, random: Random) -> tuple[Answer, float]:
    """Return the answer and the pause, with everybody back."""
    names, struck = mesh.names(), []

    def meanwhile(answer: Answer) -> None:
        if not struck and len(answer.came) >= at:
            victim = mesh.nodes[names[random.choice(answer.stages[1:])]]
            struck.append((victim, time.monotonic()))
            victim.send(number)

    answer = ask(mesh.nodes["first"], body, meanwhile)
    if not struck:
        raise SystemExit(f"the answer ended before its token {at}: {answer.error}")
    victim, when = struck[0]
    if number is signal.SIGKILL:
        victim.end()
        mesh.restart(victim.name)
    else:
        victim.send(signal.SIGCONT)
    mesh.settle()
    return answer, answer.longest_gap(since=when)


def _abandoned(mesh: Mesh, rounds: int) -> list[Row]:
    """Hang up in the middle of an answer and see when the caches of its three stages are closed."""
    seconds = []
    for _ in range(max(3, rounds)):
        ask(mesh.nodes["first"], GREEDY, lambda answer: len(answer.came) >= TOKENS // 2)
        gone = time.monotonic()
        freed = until(lambda gone=gone: _empty(mesh, gone), "the caches are closed")
        seconds.append(max(freed) - gone)
    beside = {"longest": max(seconds), "rounds": len(seconds)}
    return [
        Row("client gone until all KV is free, median", statistics.median(seconds), "s", at_most=1.0, beside=beside)
    ]


def _empty(mesh: Mesh, since: float) -> list[float]:
    """Return when three workers closed their last cache, once they have."""
    freed = Traces.read(mesh.traces, since, time.monotonic()).freed.values()
    ends = [events[-1][0] for events in freed if events[-1][1] == 0]
    return ends if len(ends) == 3 else []


def _resumed(mesh: Mesh, rounds: int) -> list[Row]:
    """Kill a stage at the 1,000th token, and in the same mesh have a prompt of as many tokens read."""
    body = chat("Tell me a long story.", LONG + 16)
    pauses, prefills = [], []
    calm = _whole(ask(mesh.nodes["first"], body), LONG + 16)
    for index in range(rounds):
        answer, pause = _strike(mesh, body, signal.SIGKILL, at=LONG, random=Random(f"long {index}"))
        if answer.text != calm.text:
            raise SystemExit(f"a resumed answer of {LONG} tokens differs from the calm one")
        pauses.append(pause)
        question = chat(f"{index}. {calm.text}", 4)  # another beginning each time: nothing of it has been read before
        prefills.append(ask(mesh.nodes["first"], question))
    seconds = statistics.median(answer.to_first for answer in prefills)
    tokens = statistics.median(answer.prompt_tokens for answer in prefills) / (calm.prompt_tokens + LONG)
    ratio = statistics.median(pauses) / seconds * tokens
    beside = {"pause": statistics.median(pauses), "prefill": seconds, "prompt over answer": tokens}
    title = f"resuming after {LONG} tokens over reading as many"
    return [Row(title, ratio, "x", at_most=1.2, beside=beside)]


def _whole(answer: Answer, tokens: int) -> Answer:
    if answer.error or answer.tokens != tokens:
        raise SystemExit(f"{tokens} tokens were asked for, {answer.tokens} came: {answer.error}")
    return answer
