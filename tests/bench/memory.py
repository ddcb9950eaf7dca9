"""Memory of a worker beyond that of a process that has only imported torch, whose own 220 MiB come without a model."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node import running_node
from results import Report, Row
from setting import Setting

from meshnode.engine.kv_cache import PAGE

GOAL = 1.6  # times the model's file, plus the KV cache in use
MIB = 1 << 20
QUESTION = "Count. " * 230  # some 500 tokens
TOKENS = 128
REST = 5.0  # seconds; a worker without sessions gives freed memory back after two
HOW = (
    "RSS of the worker minus that of a process that only imported torch: the strictest way, since PSS splits what is shared by "
    f"however many processes use torch just now; goal {GOAL} x the file plus the KV pages in use"
)


def measure(setting: Setting) -> Report:
    """Look at the worker in the middle of an answer, then at rest."""
    file = setting.gguf.stat().st_size / MIB
    busy = None
    with _only_torch() as other, running_node(setting.data_folder, setting.threads) as node:
        with node.chat(QUESTION, TOKENS) as chunks:
            for number, _ in enumerate(chunks):
                if number == TOKENS // 2:
                    busy = _memory(node.worker_pid)
            tokens = chunks.usage["prompt_tokens"] + TOKENS // 2
        if busy is None:
            raise SystemExit("the answer ended before its memory was looked at; ask something longer")
        time.sleep(REST)
        rest, torch_only, peak = _memory(node.worker_pid), _memory(other), _peak(node.worker_pid)
    pool = setting.stage().pool
    kv = -(-tokens // PAGE) * pool.page_bytes / MIB
    rows = (
        _row("worker at rest after an answer", rest, torch_only, GOAL * file, {}),
        _row(f"worker decoding at {tokens} tokens", busy, torch_only, GOAL * file + kv, {"KV": kv}),
        Row("highest RSS beyond torch, loading included", peak - torch_only["Rss"], "MiB", beside={"plain": peak}),
    )
    return Report("memory", f"{HOW}; the file is {file:.1f} MiB", rows)


def _row(title: str, worker: dict[str, float], other: dict[str, float], goal: float, extra: dict[str, float]) -> Row:
    beyond = {name: worker[name] - other[name] for name in ("Rss", "Pss", "Anonymous")}
    beside = {"PSS beyond": beyond["Pss"], "anonymous beyond": beyond["Anonymous"], "plain RSS": worker["Rss"]}
    return Row(title, beyond["Rss"], "MiB", at_most=round(goal, 1), beside=beside | extra)


@contextmanager
def _only_torch() -> Iterator[int]:
    script = "import sys, torch; print('here', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def _memory(pid: int) -> dict[str, float]:
    """Return Rss, Pss, Anonymous and so on, in MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def _peak(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
