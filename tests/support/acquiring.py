"""A node's file side as a process that can be killed: it acquires a model from a hub and one from a peer, removes them, and begins again.

Started once, it waits for lines of JSON and forks for each: importing everything takes longer than what is to be interrupted.
"""

import json
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from meshnode.config.paths import DataPaths
from meshnode.errors import PeerUnreachable
from meshnode.files.acquisition import AcquisitionManager, Supply
from meshnode.files.acquisitions import AcquireModel, RemoveModel
from meshnode.files.catalog import open_catalog
from meshnode.files.hub_client import Hub
from meshnode.files.hub_source import HubSource
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.network.bulk_lines import open_line
from meshnode.observe.metrics import Metrics
from meshnode.store.opening import open_store
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
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


async def work(*, root, endpoint, reference, model, port, certificate, tokens, once):
    lanes, paths = Lanes(), DataPaths(Path(root))
    async with open_store(paths.store, lanes) as store, trio.open_nursery() as nursery:
        catalog = await open_catalog(store, paths, Metrics(), {})
        mailbox = Mailbox("acquisition", 4)
        hub = HubSource(Hub(endpoint=endpoint), lanes, paths.transfers, pause=0.01)
        supply = Supply((hub,), OnePeer(model, port, bytes.fromhex(certificate), list(tokens)))
        manager = AcquisitionManager(catalog, mailbox, Latest(()), lanes, supply, HealthBoard(), Pulse())
        await nursery.start(manager.run)
        say("ready")

        async def repeat(wanted):
            while True:
                manifest = await mailbox.ask(AcquireModel(wanted))
                if once:
                    return
                await mailbox.ask(RemoveModel(manifest.name))

        async with trio.open_nursery() as both:
            both.start_soon(repeat, reference)
            both.start_soon(repeat, "from-a-peer")
        nursery.cancel_scope.cancel()


def main():
    say("waiting")
    for line in sys.stdin:
        if not (child := os.fork()):
            trio.run(lambda line=line: work(**json.loads(line)))
            os._exit(0)
        say(str(child))
        _, status = os.waitpid(child, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
