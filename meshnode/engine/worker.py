"""The worker process: `python -m meshnode.engine.worker FD`, started by ProcessExecutor with one end of a socket pair.

Two threads: the main one, which loads the stage and then drives the batch, and a deputy, which answers pings while the main one
computes; others come and go that connect to workers of other nodes (`ring_doors`). The process ends when the socket does, and
with its parent.
"""

import ctypes
import signal
import socket
import sys
import threading
import time

import attrs
import psutil
import torch

from meshnode.engine.batching import Batch
from meshnode.engine.calibration import calibrate
from meshnode.engine.devices import available_bytes, cache_budget, physical_cores, weight_bytes
from meshnode.engine.drift import drift_class
from meshnode.engine.executor import ExecutorStats, StageSpec
from meshnode.engine.rings import Rings
from meshnode.engine.stage_loading import LoadedStage, load_stage
from meshnode.engine.worker_messages import (
    Envelope,
    Load,
    Loading,
    Ready,
    Stats,
    StatsRequest,
)
from meshnode.engine.worker_port import WorkerPort
from meshnode.errors import EngineError, MeshnodeError
from meshnode.wire.failures import failure

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_REST = 2.0  # seconds without a session, after which freed memory goes back to the system
_MEMORY = 600.0  # seconds without a session, after which the pages of earlier ones go too


def main(descriptor: int) -> None:
    """Serve the socket until it ends."""
    _die_with_parent()
    # A service manager's stop reaches all processes of the service; the daemon drains first, and then ends us.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    port = WorkerPort(socket.socket(fileno=descriptor))
    threading.Thread(target=port.look_in_for_ever, name="deputy", daemon=True).start()
    loading = port.ask()
    if not isinstance(loading.message, Load):
        raise SystemExit("worker: the first message must be a load")
    port.busy_since = time.monotonic()
    try:
        stage = _load(port, loading)
    except MeshnodeError as error:
        port.send(Envelope(loading.exchange, failure(error)))
        return
    batch = Batch(stage, loading.message.limits, port.send, Rings(port.send, port.poller))
    port.busy_since = time.monotonic()
    calibrate(stage)
    port.send(Envelope(loading.exchange, Ready(stage.spec.device, stage.weight_bytes, stage.spec.cache_bytes)))
    used_at = time.monotonic()
    while True:
        port.busy_since = None
        stirred = _wait(port, batch)
        port.busy_since = time.monotonic()
        if batch.sessions:
            used_at = port.busy_since
        elif port.busy_since - used_at > _MEMORY:  # looked at when somebody asks for statistics, every half second
            stage.pool.forget()
            batch.rings.close_unused()
        while (question := port.next()) is not None:
            _take(port, stage, batch, question)
        batch.take_laps(stirred)
        batch.step()


def _wait(port: WorkerPort, batch: Batch) -> frozenset[int]:
    """Look what has come, and wait for it when there is nothing to compute.

    When nothing comes for a while and no session is left, freed memory goes back to the system.
    """
    if not batch.is_idle:
        return port.wait(0)
    if not batch.sessions:
        if stirred := port.wait(_REST):
            return stirred
        _give_back_freed_memory()
    return port.wait()


def _load(port: WorkerPort, loading: Envelope) -> LoadedStage:
    assert isinstance(loading.message, Load)
    spec = _settled(loading.message.spec)

    def report(done: int, total: int) -> None:
        port.busy_since = time.monotonic()
        port.send(Envelope(loading.exchange, Loading(done, total)))

    try:
        stage = load_stage(spec, report)
    except torch.OutOfMemoryError as error:
        raise EngineError(f"the device has too little memory for this stage: {error}") from error
    _give_back_freed_memory()  # 160 MB of the scratch of packing, for the starter
    return stage


def _settled(spec: StageSpec) -> StageSpec:
    """Fill in what the daemon left to this machine. Raises EngineError and OutOfMemory."""
    device = spec.device
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError("engine.device is cuda, and torch finds no CUDA device; use auto or cpu")
    threads = spec.threads or physical_cores()
    torch.set_num_threads(threads)
    spec = attrs.evolve(spec, device=device, threads=threads)
    on_gpu = device.startswith("cuda")
    free, limit = (_gpu_free(device), spec.gpu_limit) if on_gpu else (available_bytes(), spec.ram_limit)
    free = free if limit is None else min(free, limit)
    return attrs.evolve(spec, cache_bytes=cache_budget(weight_bytes(spec), free, spec.cache_bytes))


def _gpu_free(device: str) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


def _take(port: WorkerPort, stage: LoadedStage, batch: Batch, envelope: Envelope) -> None:
    if isinstance(envelope.message, StatsRequest):
        stats = ExecutorStats(
            weight_bytes=stage.weight_bytes,
            cache_bytes_used=stage.pool.used_bytes,
            cache_bytes_budget=stage.pool.budget_bytes,
            sessions=batch.sessions,
            resident_bytes=psutil.Process().memory_info().rss,
            prefill_tokens=batch.counters.prefill_tokens,
            decode_tokens=batch.counters.decode_tokens,
            block_seconds=stage.pace.block_seconds,
            prefill_seconds=stage.pace.prefill_seconds,
            free_tokens=stage.free_tokens,
            device=stage.spec.device,
            drift_class=drift_class(stage.spec.device),
            kept_bytes=stage.pool.kept_bytes,
            gpu_free_bytes=_gpu_free(stage.spec.device) if stage.spec.device.startswith("cuda") else 0,
        )
        port.send(Envelope(envelope.exchange, Stats(stats)))
    else:
        batch.accept(envelope)


def _give_back_freed_memory() -> None:
    """Return what the C library keeps of freed memory; only glibc keeps it, and only glibc can be asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
