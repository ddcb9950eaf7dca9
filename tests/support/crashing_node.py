"""`python -m meshnode`, except that at SIGUSR1 a task of libp2p's raises, as a bug of its own would.

With $BENCH_TRACES it writes down in that folder which streams and links it opens.
"""

import os
import signal

import trio
from bench.traced_node import trace_openings, trace_workers
from libp2p.network.swarm import Swarm

from meshnode.cli.main import main

_run = Swarm.run


async def _crash(_):
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _number in signals:
            raise RuntimeError("injected into libp2p")


async def _run_and_crash(swarm):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_crash, swarm)
        await _run(swarm)


if __name__ == "__main__":
    Swarm.run = _run_and_crash
    if "BENCH_TRACES" in os.environ:
        trace_openings()
        trace_workers()
    main()
