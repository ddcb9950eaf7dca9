"""A node's file side as a process that can be killed: it acquires models, prunes and removes them, and begins again.

Started once, it waits for lines of JSON and forks for each: importing everything takes longer than what is to be interrupted.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from meshnode.config.paths import DataPaths
from meshnode.errors import PeerUnreachable
from meshnode.files import staging
from meshnode.files.acquisition import AcquisitionManager, Supply
from meshnode.files.acquisitions import AcquireModel, DropBlocks, RemoveModel
from meshnode.files.catalog import ModelCatalog, open_catalog
from meshnode.files.hub_client import Hub
from meshnode.files.hub_source import HubSource
from meshnode.files.local_gguf import LocalGGUF
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.network.bulk_lines import open_line
from meshnode.observe.metrics import Metrics
from meshnode.store.opening import open_store
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.blocks import BlockRange
from meshnode.types.model_names import ModelNames
from meshnode.wire.control_messages import Ticket


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@attrs.define
class OnePeer:
    """Holds all of one model; every connection uses up one of the tokens."""

    model: str
    port: int
    certificate: bytes
    tokens: list
    threads: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(8))

    def models(self):
        return (ModelNames(self.model, "from-a-peer"),)

    def holders(self, model, _block, *, embedding=False, head=False):
        return frozenset({"giver"} if model == self.model else ())

    @asynccontextmanager
    async def line(self, peer):
        if not self.tokens:
            raise PeerUnreachable("no token is left")
        ticket = Ticket(("127.0.0.1",), self.port, self.certificate, bytes.fromhex(self.tokens.pop()), 60.0)
        async with open_line(peer, ticket, self.threads) as line:
            yield line

    def accuse(self, peer, what):
        say(f"accused {peer} {what}")


async def fetch_one(*, root, endpoint, reference, dying, nth):
    """A model from a hub; the process dies by itself in the nth call of what is `dying`."""
    die_in(dying, nth)
    paths = DataPaths(Path(root))
    hub = HubSource(Hub(endpoint=endpoint), Lanes(), paths.transfers, pause=0.01)
    async with running(paths, Supply((hub,))) as mailbox:
        await repeat(mailbox, reference)


async def fetch(*, root, endpoint, reference, model, port, certificate, tokens, once):
    """A model from a hub and one from a peer, side by side; `once`: and no more."""
    paths = DataPaths(Path(root))
    hub = HubSource(Hub(endpoint=endpoint), Lanes(), paths.transfers, pause=0.01)
    peer = OnePeer(model, port, bytes.fromhex(certificate), list(tokens))
    async with running(paths, Supply((hub,), peer)) as mailbox, trio.open_nursery() as both:
        for wanted in (reference, "from-a-peer"):
            both.start_soon(repeat, mailbox, wanted, once)


async def keep_house(*, root, model, dying="", nth=0):
    """A model from a file; the process dies by itself in the nth call of what is `dying`."""
    if dying:
        die_in(dying, nth)
    async with running(DataPaths(Path(root)), Supply((LocalGGUF(),))) as mailbox:
        await repeat(mailbox, model)


@asynccontextmanager
async def running(paths, supply):
    lanes = Lanes()
    async with open_store(paths.store, lanes) as store, trio.open_nursery() as nursery:
        catalog = await open_catalog(store, paths, Metrics(), {})
        mailbox = Mailbox("acquisition", 4)
        manager = AcquisitionManager(catalog, mailbox, Latest(()), lanes, supply, HealthBoard(), Pulse())
        await nursery.start(manager.run)
        say("ready")
        yield mailbox
        nursery.cancel_scope.cancel()


async def repeat(mailbox, wanted, once=False):
    while True:
        manifest = await mailbox.ask(AcquireModel(wanted, unasked=True))
        if once:
            return
        await mailbox.ask(DropBlocks(manifest.id, BlockRange(1, manifest.config.block_count)))
        await mailbox.ask(RemoveModel(manifest.name))


def die_in(name, nth):
    place = next(each for each in (staging, HubSource, ModelCatalog) if hasattr(each, name))
    real, calls = getattr(place, name), []

    def fatal(*arguments):
        calls.append(1)
        if len(calls) == nth:
            os._exit(9)
        return real(*arguments)

    setattr(place, name, fatal)


def main():
    say("waiting")
    for line in sys.stdin:
        if not (child := os.fork()):
            order = json.loads(line)
            works = {"fetch": fetch, "fetch_one": fetch_one, "keep_house": keep_house}
            trio.run(partial(works[order.pop("work")], **order))
            os._exit(0)
        say(str(child))
        _, status = os.waitpid(child, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


# For those who order


@contextmanager
def acquirer():
    """Yield what runs one incarnation until it ends, or is killed after some seconds; it returns what was printed."""
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    command = [sys.executable, "-m", "support.acquiring"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as waiting:

        def run(order, seconds=None):
            waiting.stdin.write(json.dumps(order) + "\n")
            waiting.stdin.flush()
            child, said = int(waiting.stdout.readline()), []
            if seconds is not None:
                while "ready" not in said:  # a kill before that is one of a start, which another one covers
                    said.append(waiting.stdout.readline().strip())
                time.sleep(seconds)
                with suppress(ProcessLookupError):  # it was faster
                    os.kill(child, signal.SIGKILL)
            while not (said and said[-1].startswith("ended")):
                said.append(waiting.stdout.readline().strip())
            return said

        try:
            assert waiting.stdout.readline() == "waiting\n"
            yield run
        finally:
            waiting.kill()


if __name__ == "__main__":
    main()
