"""`python -m meshnode`, except that at SIGUSR1 a task of libp2p's raises, as a bug of its own would."""

import signal

import trio
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
    main()
