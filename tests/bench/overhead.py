"""What HTTP and the worker's socket add to a streamed token."""

import statistics
import time

import psutil
from node import Node, running_node
from results import Report, Row, spread
from setting import Setting

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation
from meshnode.engine.worker_messages import BatchLimits, Envelope, Generate, Progress
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId

GOAL = 1.0  # milliseconds
TOKENS = 96
QUESTION = "Tell me a long story about a lighthouse keeper and the sea."
HOW = (
    f"wall time per token of a streamed chat ({TOKENS} tokens) minus that of the same batch loop and sampler in this process, "
    "paired by round; the daemon's CPU too, for what it does while the worker computes hides in the wall time"
)


def measure(setting: Setting) -> Report:
    """Alternate: an answer streamed by a real node, the same number of tokens from the batch in this process."""
    batch_stage = setting.stage()
    rounds = []
    with running_node(setting.data_folder, setting.threads) as node:
        for _ in range(3 * setting.rounds + 1):  # short rounds, many of them: the difference is small
            streamed, daemon, worker, prompt = _streamed(node)
            inside, cpu = _in_process(batch_stage, prompt)
            rounds.append((streamed - inside, streamed, inside, daemon, worker - cpu))
    overhead, streamed, inside, daemon, worker = (list(column) for column in zip(*rounds[1:], strict=True))
    beside = {
        "spread": spread(overhead),
        "streamed": statistics.median(streamed),
        "in process": statistics.median(inside),
    }
    # A tick is 10 ms, so these are means. The worker's part is a small difference of large numbers, and moves with neighbours.
    beside_cpu = {"more in the worker": statistics.fmean(worker)}
    return Report(
        "overhead",
        HOW,
        (
            Row("HTTP + IPC per token, wall", statistics.median(overhead), "ms", at_most=GOAL, beside=beside),
            Row("daemon's CPU per token", statistics.fmean(daemon), "ms", at_most=GOAL, beside=beside_cpu),
        ),
    )


def _streamed(node: Node) -> tuple[float, float, float, int]:
    """Return milliseconds per token: wall, CPU of the daemon, CPU of the worker; and the tokens of the prompt."""
    processes = [psutil.Process(pid) for pid in (node.pid, node.worker_pid)]
    times, cpu = [], [0.0, 0.0]
    with node.chat(QUESTION, TOKENS) as chunks:
        for _ in chunks:
            times.append(time.perf_counter())
            if len(times) == 1:
                cpu = [_cpu(process) for process in processes]
        cpu = [_cpu(process) - before for process, before in zip(processes, cpu, strict=True)]
    if chunks.usage["completion_tokens"] != TOKENS:
        raise SystemExit(f"the answer ended after {chunks.usage['completion_tokens']} tokens; ask something longer")
    wall, daemon, worker = (1000 * value / (TOKENS - 1) for value in (times[-1] - times[0], *cpu))
    return wall, daemon, worker, chunks.usage["prompt_tokens"]


def _in_process(stage, prompt: int) -> tuple[float, float]:
    """Return milliseconds per token: wall, CPU. No socket, no other process."""
    times: list[tuple[float, float]] = []

    def emit(envelope: Envelope) -> None:
        if isinstance(envelope.message, Progress):
            times.append((time.perf_counter(), time.process_time()))

    batch = Batch(stage, BatchLimits(), emit)
    tokens = tuple(1000 + i for i in range(prompt))
    generation = Generation(SessionId("bench"), tokens, prompt, TOKENS, SamplingParameters(temperature=0))
    batch.accept(Envelope(1, Generate(generation, TOKENS)))
    while not batch.is_idle:
        batch.step()
    return tuple(1000 * (end - begin) / (TOKENS - 1) for begin, end in zip(times[0], times[-1], strict=True))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
