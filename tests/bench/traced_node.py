"""`python -m meshnode`, except that its workers write down when they compute, and it when a stream or link is opened.

One line per event goes to the file named after the process in $BENCH_TRACES. All processes of a machine share the clock.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshnode.cli.main import main
from meshnode.engine.worker_process import WorkerProcess

WORKER = (sys.executable, str(Path(__file__).with_name("traced_worker.py")))


def writer() -> Callable[[str], None]:
    """Return what writes one line to this process's file."""
    file = os.open(f"{os.environ['BENCH_TRACES']}/{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    return lambda line: os.write(file, f"{line}\n".encode()) and None


def trace_openings() -> None:
    """Have every stream and link written down that this process opens."""
    from meshnode.network.dataplane import DataPlane
    from meshnode.network.libp2p_connections import Connections

    write = writer()

    def traced(original: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: object, **kwargs: object) -> object:
            what = args[-1] if isinstance(args[-1], str) else "link"  # the protocol of a stream
            write(f"opened {time.monotonic()} {what}")
            return await original(*args, **kwargs)

        return call

    Connections.open_stream = traced(Connections.open_stream)  # negotiates a protocol
    DataPlane._open = traced(DataPlane._open)  # a link for activations: ticket, TCP, TLS, greeting


def trace_workers() -> None:
    """Have workers write down what they do."""
    original = WorkerProcess.start
    WorkerProcess.start = staticmethod(lambda descriptor: original(descriptor, WORKER))  # type: ignore[method-assign]


if __name__ == "__main__":
    trace_workers()
    trace_openings()
    main()
