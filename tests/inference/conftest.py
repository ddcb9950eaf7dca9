"""A router over fake executors and a catalog of one tiny model."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from support.tiny_gguf import write_tiny_llama

from meshnode.errors import UnknownModel
from meshnode.files.importing import import_gguf
from meshnode.files.shard_file import shard_path
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.calls import open_generations
from meshnode.inference.model_loading import ModelTables
from meshnode.inference.models import EngineSettings
from meshnode.inference.router import InferenceRouter, RouterResources, RouterSettings
from meshnode.node.mesh import solitary_mesh
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import Delta, GenerationRequest
from meshnode.types.ids import PeerId, RequestId

SETTINGS = RouterSettings(
    EngineSettings("cpu", 1, 0, 1 << 20, 8), queue_length=4, max_concurrent=2, request_timeout=1000.0
)


class Catalog:
    """Models that are wholly here."""

    def __init__(self, folder, *manifests):
        self.all, self.folder, self.revision = manifests, folder, Latest(0)

    def manifests(self):
        return self.all

    def aliases(self, model):
        return ()

    def resolve(self, name):
        for manifest in self.all:
            if manifest.name == name:
                return manifest
        raise UnknownModel(f"there is no model {name!r}")

    def held(self, model):
        manifest = next(manifest for manifest in self.all if manifest.id == model)
        return frozenset(shard.id for shard in manifest.shards)

    def path(self, shard):
        return shard_path(self.folder, shard)


class InlineLanes(Lanes):
    """Runs blocking work at once: a thread would not know of virtual time."""

    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await trio.lowlevel.checkpoint()
        return function(*args)


@attrs.define
class Bench:
    """A running router; `names` are its models."""

    mailbox: Mailbox
    resources: RouterResources
    names: tuple[str, ...]

    async def answer(self, model=0, **options):
        request = GenerationRequest(RequestId("r"), self.names[model], (ChatMessage("user", "hi"),), **options)
        return await self.run(request)

    async def run(self, request):
        async with open_generations(self.mailbox, [request]) as events:
            found = [event async for _, event in events]
        return "".join(event.text for event in found if isinstance(event, Delta))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return folder, [
        import_gguf(write_tiny_llama(folder / f"{name}.gguf", name=name, seed=seed), folder)
        for seed, name in enumerate(("First", "Second"))
    ]


@pytest.fixture
def bench(models):
    """Open a router; `build` makes the executor of a model by its number, `changes` are to its settings."""
    folder, manifests = models

    @asynccontextmanager
    async def opened(build, wanted=(0,), peers=None, **changes):
        numbers = {manifest.id: number for number, manifest in enumerate(manifests)}
        mailbox = Mailbox("router")
        alone = solitary_mesh(PeerId("me"), Mailbox("stages", 64))
        resources = RouterResources(
            mailbox,
            ModelTables(
                Catalog(folder, *manifests), Latest(frozenset(manifests[number].id for number in wanted)), Latest({})
            ),
            alone if peers is None else attrs.evolve(alone, peers=peers),
            InlineLanes(),
            Metrics(),
            HealthBoard(),
        )
        router = InferenceRouter(
            resources, attrs.evolve(SETTINGS, **changes), lambda spec: build(numbers[spec.model]), Pulse()
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(router.run)
            yield Bench(mailbox, resources, tuple(manifest.name for manifest in manifests))
            nursery.cancel_scope.cancel()

    return opened
