"""The worker process, spoken to over its socket."""

import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import attrs
import msgspec
import psutil
import pytest
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.executor import Generation
from meshnode.engine.worker_messages import (
    BatchLimits,
    Cancel,
    Envelope,
    Generate,
    Load,
    Ping,
    Pong,
    Progress,
    Ready,
    Release,
    Released,
    Stats,
    StatsRequest,
    to_worker_codec,
)
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed
from meshnode.wire.frames import Frame, FrameLimits, encode_frame

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return stage_of(tiny_manifest(write_tiny_llama(folder / "m.gguf"), folder / "shards"), folder / "shards")


class Worker:
    """A worker and our end of its socket."""

    def __init__(self, spec, **options):
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(60)
        with theirs:
            command = [sys.executable, "-m", "meshnode.engine.worker", str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **options)
        self.codec, self.inbox = to_worker_codec(), []
        self.ask(1, Load(spec, BatchLimits()))

    def ask(self, exchange, message):
        self.socket.sendall(self.codec.encode(Envelope(exchange, message)))

    def until(self, *kinds):
        """Return the next message of one of `kinds`."""
        while True:
            while self.inbox:
                envelope = self.inbox.pop(0)
                if isinstance(envelope.message, kinds):
                    return envelope
            data = self.socket.recv(1 << 16)
            assert data, "the worker ended"
            self.inbox += self.codec.feed(data)

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def shared(spec):
    """A worker for the tests that leave it running; each has exchanges of its own."""
    yield from ready(spec)


@pytest.fixture
def worker(spec):
    yield from ready(spec)


def ready(spec):
    made = Worker(spec)
    assert made.until(Ready, Failed).message.device == "cpu"
    yield made
    made.close()


def generation(count):
    return Generation(SessionId("s"), (5, 6, 7), 3, count, SamplingParameters(temperature=0))


def test_kinds_of_a_newer_version_are_skipped(shared):
    strange = msgspec.msgpack.encode({"type": "teleport", "where": "elsewhere"})
    shared.socket.sendall(encode_frame(Frame(1, 5, strange), FrameLimits({1: 1 << 20})))
    shared.socket.sendall(encode_frame(Frame(77, 6, strange), FrameLimits({77: 1 << 20})))
    shared.ask(7, Release(SessionId("nobody")))
    assert shared.until(Released, Failed).exchange == 7


def test_it_answers_pings_in_the_middle_of_work_and_stops_what_is_cancelled(shared):
    shared.ask(2, Generate(generation(900), 1000))
    shared.until(Progress)
    shared.ask(3, Ping())
    assert shared.until(Pong).exchange == 3
    shared.ask(2, Cancel())
    shared.ask(4, StatsRequest())
    stats = shared.until(Stats).message.stats
    assert (stats.sessions, stats.cache_bytes_used) == (0, 0)
    assert stats.decode_tokens < 899


def test_the_stop_of_a_service_manager_is_the_daemons_to_pass_on(shared):
    shared.process.send_signal(signal.SIGTERM)
    shared.process.send_signal(signal.SIGTERM)
    shared.ask(8, StatsRequest())
    assert shared.until(Stats).exchange == 8


def test_it_ends_with_its_socket_whatever_it_is_doing(worker):
    worker.ask(2, Generate(generation(900), 1000))
    worker.until(Progress)
    worker.socket.close()
    assert worker.process.wait(10) == 0


def test_bytes_that_are_no_frames_end_it(worker):
    worker.socket.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    assert worker.process.wait(10) == 0


def test_a_load_that_is_refused_ends_it_with_the_reason(spec):
    refused = Worker(attrs.evolve(spec, cache_bytes=1 << 50))
    failed = refused.until(Failed, Ready).message
    assert failed.code == "out_of_memory"
    assert "MiB are free" in failed.message
    assert refused.process.wait(10) == 0
    refused.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_it_dies_with_a_parent_that_is_killed_even_when_it_is_frozen_itself():
    """A stopped process reads no end of stream; the kernel's signal reaches it all the same."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    worker = psutil.Process(pid)
    while not signals_at_parents_death(pid):
        time.sleep(0.05)  # the process is not ours to wait for
    worker.suspend()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


PARENT = textwrap.dedent("""
    import socket, subprocess, sys, time
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "meshnode.engine.worker", str(theirs.fileno())]
    print(subprocess.Popen(command, pass_fds=[theirs.fileno()]).pid, flush=True)
    time.sleep(600)
""")


def signals_at_parents_death(pid):
    """Whether main() has begun: it ignores SIGTERM, which it does right after asking for the signal."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    ignored = next(line for line in status if line.startswith("SigIgn"))
    return int(ignored.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def test_it_loads_no_more_than_it_needs():
    code = "import sys, meshnode.engine.worker; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"trio", "structlog", "httpx", "hypercorn", "tokenizers", "gguf", "jinja2"} & set(loaded)


def test_a_limit_of_the_settings_is_all_the_memory_that_a_worker_sees(spec):
    limit = 64 << 20
    limited = Worker(attrs.evolve(spec, cache_bytes=0, ram_limit=limit, gpu_limit=0))
    budget = limited.until(Ready, Failed).message.cache_bytes
    assert limit // 4 < budget <= limit // 2
    limited.close()
