"""Whole routers over a network in memory: a model of hashes with a real tokenizer, spread over nodes as a test likes."""

from contextlib import asynccontextmanager

import attrs
import trio
from support.memory_mesh import MemoryNetwork
from support.tiny_gguf import write_tiny_llama
from support.toy_executor import ToyExecutor

from meshnode.errors import MeshnodeError, UnknownModel
from meshnode.files.importing import import_gguf
from meshnode.files.shard_file import shard_path
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.calls import open_generations
from meshnode.inference.model_loading import ModelTables
from meshnode.inference.models import EngineSettings
from meshnode.inference.router import InferenceRouter, MeshAccess, RouterResources, RouterSettings
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.blocks import BlockRange
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import Delta, Finished, GenerationRequest, SamplingParameters, Started
from meshnode.types.ids import PeerId, RequestId
from meshnode.types.manifest import ShardKind
from meshnode.types.peers import Holding, Offering

__all__ = ["Answered", "RouterMesh", "SixBlocks", "six_blocks"]

PROMPT = "Tell me of the sea, of seven gulls, and of a lighthouse."


@attrs.frozen(eq=False)
class SixBlocks:
    """A model on disk."""

    manifest: object
    folder: object

    def part(self, start, end, *, ends=False):
        """What a node says that it has of it."""
        model, count = self.manifest, self.manifest.config.block_count
        if not end:
            return ()
        return (
            Holding(
                model.id, model.name, count, (BlockRange(start, end),), ends or start == 0, head=ends or end == count
            ),
        )


def six_blocks(folder):
    """Write the model and import it."""
    return SixBlocks(import_gguf(write_tiny_llama(folder / "m.gguf", name="Six", blocks=6), folder), folder)


class _Catalog:
    """What one node has of it: blocks [start, end) with the ends they touch, or nothing."""

    def __init__(self, model, start, end, ends):
        self.model, self.start, self.end, self.revision = model, start, end, Latest(0)
        self.ends = {ShardKind.EMBEDDING, ShardKind.HEAD} if ends else set()

    def manifests(self):
        return (self.model.manifest,) if self.end else ()

    def aliases(self, model):
        return ()

    def resolve(self, name):
        if not self.end or name not in (self.model.manifest.name, self.model.manifest.id):
            raise UnknownModel(f"there is no model {name!r}")
        return self.model.manifest

    def held(self, model):
        count = self.model.manifest.config.block_count
        ends = self.ends | {ShardKind.TOKENIZER} | ({ShardKind.EMBEDDING} if self.start == 0 else set())
        ends |= {ShardKind.HEAD} if self.end == count else set()
        return frozenset(
            shard.id
            for shard in self.model.manifest.shards
            if shard.kind in ends or (shard.block is not None and self.start <= shard.block < self.end)
        )

    def path(self, shard):
        return shard_path(self.model.folder, shard)


class _InlineLanes(Lanes):
    """Runs blocking work at once: a thread would not know of virtual time."""

    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await trio.lowlevel.checkpoint()
        return function(*args)


@attrs.define
class Answered:
    """What a caller got."""

    text: str = ""
    started: list = attrs.field(factory=list)
    finished: Finished | None = None
    error: MeshnodeError | None = None
    at: float = 0.0  # when it ended


@attrs.define
class RouterNode:
    """One node."""

    peer: str
    mailbox: Mailbox
    resources: RouterResources
    build: object  # called: an incarnation of its router
    executors: list
    router: InferenceRouter = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(init=False)

    def request(self, model="six", count=60, **options):
        options.setdefault("messages", (ChatMessage("user", PROMPT),))
        sampling = SamplingParameters(temperature=0.7, seed=3)
        return GenerationRequest(RequestId("r"), model, sampling=sampling, max_tokens=count, **options)

    async def ask(self, model="six", count=60, on_text=None, **options):
        """Return an Answered; `on_text` hears the text so far."""
        answered = Answered()
        try:
            async with open_generations(self.mailbox, [self.request(model, count, **options)]) as events:
                async for _, event in events:
                    if isinstance(event, Started):
                        answered.started.append(event)
                    if isinstance(event, Delta):
                        answered.text += event.text
                        if on_text is not None:
                            on_text(answered.text)
                    if isinstance(event, Finished):
                        answered.finished = event
        except MeshnodeError as error:
            answered.error = error
        answered.at = trio.current_time()
        return answered


@attrs.define
class RouterMesh:
    """All of them."""

    model: SixBlocks
    network: MemoryNetwork
    nursery: trio.Nursery
    nodes: dict = attrs.field(factory=dict)

    async def add(self, name, start=0, end=0, *, pace=1e-4, room=1 << 16, ends=False, executor=None, **settings):
        """Start a node with blocks [start, end), or with nothing, and wait until it offers them.

        `executor`, called with a StageSpec and its pace, makes what computes, if it is to be no chain of hashes.
        """
        known = self.network.add(name)
        executors = []

        def build(spec):
            if executor is not None:
                executors.append(executor(spec, pace))
                return executors[-1]
            executors.append(
                ToyExecutor(
                    spec.config.block_count,
                    spec.blocks,
                    embedding=spec.embedding,
                    head=spec.head,
                    vocabulary=259,
                    pace=pace,
                    room=room,
                    width=2 * spec.config.hidden_size,
                )
            )
            return executors[-1]

        offering = Latest(Offering())
        known.stages = lambda: offering.value.stages
        known.sequence = lambda: offering.version
        known.holdings = self.model.part(start, end, ends=ends)
        resources = RouterResources(
            Mailbox("router"),
            ModelTables(
                _Catalog(self.model, start, end, ends),
                Latest(frozenset([self.model.manifest.id] if end else [])),
                Latest({}),
            ),
            MeshAccess(PeerId(name), known, known, known.received, offering),
            _InlineLanes(),
            Metrics(),
            HealthBoard(),
        )
        defaults = {"queue_length": 64, "max_concurrent": 2, "request_timeout": 1000.0, "prefill_chunk": 16}
        chosen = RouterSettings(EngineSettings("cpu", 1, 0, 1 << 20, 8), **(defaults | settings))
        node = RouterNode(
            name,
            resources.mailbox,
            resources,
            lambda: InferenceRouter(resources, chosen, build, Pulse()),
            executors,
        )
        self.nodes[name] = node
        await self._begin(node)
        return node

    async def _live(self, node, *, task_status):
        with node.scope:
            await node.router.run(task_status=task_status)

    async def crash_router(self, name):
        """End the router and start another; the node, its links and its gossip go on."""
        node = self.nodes[name]
        node.scope.cancel()
        await trio.sleep(0.2)  # as its supervisor does
        await self._begin(node)

    async def _begin(self, node):
        node.router, node.scope = node.build(), trio.CancelScope()
        wanted, offering = node.resources.models.wanted.value, node.resources.mesh.offering
        before = offering.version
        await self.nursery.start(self._live, node)
        while wanted and (offering.version == before or not offering.value.stages):
            await offering.changed(offering.version)
        self.network.tell()

    def kill(self, name):
        """End the process."""
        self.network.kill(name)
        self.nodes.pop(name).scope.cancel()

    def held(self):
        """Return who still holds memory of a session."""
        counts = {name: sum(len(each.sessions) for each in node.executors) for name, node in self.nodes.items()}
        return {name: count for name, count in counts.items() if count}


@asynccontextmanager
async def open_routers(model, **options):
    """Yield an empty mesh."""
    async with trio.open_nursery() as nursery:
        yield RouterMesh(model, MemoryNetwork(nursery, **options), nursery)
        nursery.cancel_scope.cancel()
