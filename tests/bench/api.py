"""What the HTTP API can do by itself: events of streams per second of processor time, and a small request."""

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from api_server import KEY, TOKENS
from node import running_node
from results import Report, Row
from setting import Setting

CONNECTIONS = 8
ASKED = 400
HOW = (
    f"{CONNECTIONS} streams of {TOKENS} tokens at once from the API before a router that has them all, per second of the server's "
    "processor time (other programs do not touch it, unlike wall time); GET /v1/models at a real node, one connection"
)


def measure(setting: Setting) -> Report:
    """Streams first, then small requests."""
    rates, walls = zip(*(_streams() for _ in range(setting.rounds)), strict=True)
    with running_node(setting.data_folder, setting.threads) as node:
        headers = {"Authorization": node.http.headers["Authorization"]}
        times = _small(node.http.base_url.port, headers)
    beside = {"wall": statistics.median(walls)}
    tail = {"p95": statistics.quantiles(times, n=20)[-1]}
    rows = (
        Row("SSE events per second of one core", statistics.median(rates), "1/s", at_least=10_000, beside=beside),
        Row("GET /v1/models, p50", statistics.median(times), "ms", at_most=3.0, beside=tail),
    )
    return Report("api", HOW, rows)


def _streams() -> tuple[float, float]:
    """Return events per second: of processor time, and of wall time."""
    command = [sys.executable, str(Path(__file__).with_name("api_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            _read(port, [])  # warms up
            server, counts = psutil.Process(process.pid), []
            threads = [threading.Thread(target=_read, args=(port, counts)) for _ in range(CONNECTIONS)]
            before, began = sum(server.cpu_times()[:2]), time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds, wall = sum(server.cpu_times()[:2]) - before, time.perf_counter() - began
        finally:
            process.kill()
    if counts != [TOKENS] * CONNECTIONS:
        raise SystemExit(f"{TOKENS} events were wanted of each stream, and {counts} came")
    return sum(counts) / seconds, sum(counts) / wall


def _read(port: int, counts: list[int]) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "go"}], "stream": True}
    headers = {"Authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"the API answered {response.status}: {response.read().decode()}")
    counts.append(response.read().count(b'"content":" token"'))
    connection.close()


def _small(port: int, headers: dict[str, str]) -> list[float]:
    """Return milliseconds of each of many requests, after some that warm up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    for _ in range(ASKED + 50):
        began = time.perf_counter()
        connection.request("GET", "/v1/models", headers=headers)
        response = connection.getresponse()
        response.read()
        times.append(1000 * (time.perf_counter() - began))
        if response.status != 200:
            raise SystemExit(f"the node answered {response.status}")
    connection.close()
    return times[50:]
