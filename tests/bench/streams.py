"""Several answers at once: tokens per second in all against llama.cpp's server, and many more than are run at a time."""

import http.client
import json
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import llama_cpp
import memory
from node import Node, running_node
from results import Report, Row
from setting import Setting

COUNTS = (1, 2, 4, 8)
TOKENS = 64
MANY, SHORT = 64, 24  # streams, tokens of each
GOALS = {8: 1.3}
FAIR = 3.0
SUBJECTS = (
    "lighthouse",
    "river",
    "forest",
    "mountain",
    "village",
    "harbour",
    "desert",
    "island",
    "castle",
    "garden",
    "bridge",
)
HOW = (
    f"both as servers, {TOKENS} tokens per stream, greedy, streamed over one connection each by the same client; tokens of all "
    f"streams over the time from the first request to the last token; then {MANY} streams of {SHORT} tokens at the node alone"
)


@attrs.define(eq=False)
class Stream:
    """One streamed completion: when its tokens came."""

    url: str
    headers: dict[str, str]
    prompt: str
    length: int  # tokens
    began: float = 0.0
    first: float = 0.0
    tokens: int = 0

    def run(self) -> None:
        """Read it to its end."""
        place = urlsplit(self.url)
        body = {"model": "starter", "prompt": self.prompt, "max_tokens": self.length, "temperature": 0, "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=300)
        self.began = time.perf_counter()
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {**self.headers, "content-type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"{self.url} answered {response.status}: {response.read().decode()}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            self.first = self.first or time.perf_counter()
            if b'"usage":{' in line.replace(b" ", b""):
                self.tokens = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
        connection.close()


def measure(setting: Setting) -> Report:
    """Alternate between the two servers, each with 1, 2, 4 and 8 streams; then see how many streams fare."""
    llama = llama_cpp.server(setting.gguf, setting.threads, context=max(COUNTS) * 2048, parallel=max(COUNTS))
    rows = []
    with running_node(setting.data_folder, setting.threads) as node:
        headers = {"Authorization": node.http.headers["Authorization"]}
        for count in COUNTS:
            rounds = [
                (_rate(str(node.http.base_url), headers, count), _rate(llama.listening_address, {}, count))
                for _ in range(setting.rounds + 1)
            ][1:]
            ours, theirs = ([each[side] for each in rounds] for side in (0, 1))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            beside = {"meshnode tokens/s": statistics.median(ours), "llama.cpp": statistics.median(theirs)}
            rows.append(
                Row(f"{count} streams over llama.cpp's server", ratio, "x", at_least=GOALS.get(count), beside=beside)
            )
        rows += _many(node, headers)
    return Report("streams", HOW, tuple(rows))


def _rate(url: str, headers: dict[str, str], count: int) -> float:
    streams = _run(url, headers, count, TOKENS)
    ends = time.perf_counter()
    if any(stream.tokens != TOKENS for stream in streams):
        raise SystemExit(f"answers of {[stream.tokens for stream in streams]} tokens, and {TOKENS} were asked for")
    return count * TOKENS / (ends - min(stream.began for stream in streams))


def _run(url: str, headers: dict[str, str], count: int, length: int) -> Sequence[Stream]:
    streams = [
        Stream(url, headers, f"Once upon a time, near the {SUBJECTS[number % len(SUBJECTS)]} number {number},", length)
        for number in range(count)
    ]
    threads = [threading.Thread(target=stream.run) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return streams


def _many(node: Node, headers: dict[str, str]) -> list[Row]:
    """Ask for many streams at once, twice: what the first time leaves is not a leak but the allocator's."""
    _run(str(node.http.base_url), headers, MANY, SHORT)
    before = _rss(node)
    began = time.perf_counter()
    streams = _run(str(node.http.base_url), headers, MANY, SHORT)
    seconds = time.perf_counter() - began
    waits = sorted(stream.first - stream.began for stream in streams)
    after = _rss(node)
    finished = sum(stream.tokens == SHORT for stream in streams)
    beside = {"median s": statistics.median(waits), "longest s": waits[-1]}
    return [
        Row(
            f"{MANY} streams: complete",
            finished,
            "streams",
            at_least=MANY,
            beside={"tokens/s": MANY * SHORT / seconds},
        ),
        Row(
            "longest wait for a first token over median",
            waits[-1] / statistics.median(waits),
            "x",
            at_most=FAIR,
            beside=beside,
        ),
        Row("RSS of node and worker after over before", after - before, "MiB", at_most=8, beside={"before": before}),
    ]


def _rss(node: Node) -> float:
    time.sleep(memory.REST)
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 / 1024 for pid in (node.pid, node.worker_pid))
