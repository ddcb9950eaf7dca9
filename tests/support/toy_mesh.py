"""Nodes whose models are chains of hashes, over a network in memory: everything of a router that sessions go through."""

from contextlib import contextmanager

import attrs
import trio
from support.memory_mesh import MemoryNetwork
from support.toy_executor import WIDTH, ToyExecutor
from support.toy_rings import ToyRings

from meshnode.inference.coordination import Coordinator, Patience
from meshnode.inference.delegation import Delegations
from meshnode.inference.planner import RouteRequest
from meshnode.inference.privacy import Privacy
from meshnode.inference.route_finder import OwnStage, RouteFinder
from meshnode.inference.session import Session
from meshnode.inference.stage_inbox import StageInbox
from meshnode.inference.stage_server import StageServer
from meshnode.observe.metrics import Metrics
from meshnode.types.blocks import BlockRange
from meshnode.types.generation import SamplingParameters
from meshnode.types.peers import StageOffer

__all__ = ["BLOCKS", "PROMPT", "VOCABULARY", "WISH", "Mesh", "generate", "new_session"]

BLOCKS = 12
PROMPT = tuple(range(40))
VOCABULARY = 64
WISH = RouteRequest("model", BLOCKS, 400, prompt_tokens=len(PROMPT))


@attrs.define
class Model:
    executor: ToyExecutor
    sessions: int = 0
    row_bytes: int = WIDTH

    @contextmanager
    def session(self):
        yield


@attrs.define
class Node:
    """The parts of a router that sessions go through."""

    peer: str
    executor: ToyExecutor
    coordinator: Coordinator
    hosted: StageServer
    inbox: StageInbox


@attrs.define
class Mesh:
    network: MemoryNetwork
    nursery: trio.Nursery
    nodes: dict = attrs.field(factory=dict)
    evidence: list = attrs.field(factory=list)
    metrics: Metrics = attrs.field(factory=Metrics)
    rings: ToyRings | None = None  # executors hand rows on among themselves

    async def add(self, name, start, end, boomerang=False, **options):
        known = self.network.add(name)
        executor = ToyExecutor(
            BLOCKS,
            BlockRange(start, end),
            embedding=options.pop("embedding", start == 0),
            head=options.pop("head", end == BLOCKS),
            rings=options.pop("rings", self.rings),
            **options,
        )

        def offers():
            if not executor.is_ready:
                return ()
            room = 1 << 16
            return (
                StageOffer(
                    "model",
                    "toy",
                    BLOCKS,
                    4,
                    1 << 16,
                    executor.blocks,
                    executor.embedding,
                    executor.head,
                    "toy",
                    executor.pace,
                    executor.pace / 4,
                    room,
                ),
            )

        known.stages = offers
        known.sequence = lambda: 2 * executor.incarnation + executor.is_ready
        finder = RouteFinder(
            name,
            known,
            lambda: tuple(OwnStage(offer, executor.incarnation, 0) for offer in offers()),
            Privacy.ANYONE,
            boomerang,
        )
        coordinator = Coordinator(
            finder, known, lambda _: Model(executor), lambda _: True, 16, Patience(), self.evidence.append
        )
        scope = trio.CancelScope()

        async def live(*, task_status):
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._work, executor)
                    hosted = StageServer(known, lambda _: Model(executor), 64, nursery, self.evidence.append)
                    inbox = StageInbox(hosted, coordinator, Delegations(known), None, nursery, self.metrics)
                    task_status.started((hosted, inbox))
                    with known.received.serve() as letters:
                        async for letter in letters:
                            inbox.take(letter.question)

        hosted, inbox = await self.nursery.start(live)
        self.nodes[name] = node = Node(name, executor, coordinator, hosted, inbox)
        self.scopes[name] = scope
        await executor.ready()
        return node

    scopes: dict = attrs.field(factory=dict)

    async def _work(self, executor):
        while True:
            try:
                await executor.run()
            except Exception:
                await trio.sleep(executor.restart)

    def kill(self, name):
        self.network.kill(name)
        self.scopes[name].cancel()
        self.nodes.pop(name)

    def held(self):
        return {name: len(node.executor.sessions) + len(node.hosted) for name, node in self.nodes.items()}


def new_session(count=60, **sampling):
    return Session(PROMPT, count, SamplingParameters(**sampling), frozenset(), vocabulary=VOCABULARY)


async def generate(node, session, at=None, wish=WISH):
    """Run; `at` maps a number of tokens to what happens then."""

    async def take(_event):
        action = (at or {}).pop(len(session.generated), None)
        if action is not None:
            action()
        return True

    await node.coordinator.run(session, wish, take)
    return session.generated
