"""Real workers that are killed or frozen in the middle of an answer."""

import signal
from contextlib import asynccontextmanager

import psutil
import pytest
import trio
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.process_executor import ProcessExecutor
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
from meshnode.types.generation import Delta, Finished, GenerationRequest, SamplingParameters
from meshnode.types.ids import PeerId, RequestId

pytestmark = pytest.mark.processes

SETTINGS = RouterSettings(EngineSettings("cpu", 1, 0, 64 << 20, 8), 16, 4, 120.0)
# without the tokens that end it, so that an answer is as long on every processor's arithmetic
WARM = SamplingParameters(
    temperature=1.1, top_p=0.95, seed=7, logit_bias=tuple((token, -100.0) for token in (*range(3), *range(259, 320)))
)


class OneModel:
    def __init__(self, folder):
        self.folder, self.revision = folder, Latest(0)
        self.manifest = import_gguf(write_tiny_llama(folder / "m.gguf"), folder)

    def manifests(self):
        return (self.manifest,)

    def aliases(self, model):
        return ()

    def resolve(self, name):
        return self.manifest

    def held(self, model):
        return frozenset(shard.id for shard in self.manifest.shards)

    def path(self, shard):
        return shard_path(self.folder, shard)


class Node:
    """A router with a real worker."""

    def __init__(self, mailbox):
        self.mailbox, self.executors = mailbox, []

    def build(self, spec):
        self.executors.append(ProcessExecutor(spec, ping_interval=0.2, silence_limit=2.0))
        return self.executors[-1]

    def generate(self, sampling=WARM, count=400):
        request = GenerationRequest(
            RequestId("r"), "m", (ChatMessage("user", "hi"),), sampling=sampling, max_tokens=count
        )
        return open_generations(self.mailbox, [request])

    async def answer(self, disturb=None):
        """Return the text and the end; `disturb` gets its chance after some of the text."""
        text, finished, disturbed = "", None, disturb is None
        async with self.generate() as events:
            async for _, event in events:
                if isinstance(event, Delta):
                    text += event.text
                if isinstance(event, Finished):
                    finished = event
                if len(text) > 40 and not disturbed:
                    disturbed = True
                    disturb()
        return text, finished.reason, finished.usage

    async def memory(self):
        return (await self.executors[0].stats()).cache_bytes_used


def workers():
    """Return ours; other tests have children too."""
    return [p for p in psutil.Process().children() if "meshnode.engine.worker" in " ".join(p.cmdline())]


def worker():
    (process,) = workers()
    return process


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return OneModel(tmp_path_factory.mktemp("model"))


@pytest.fixture
def opened(catalog):
    @asynccontextmanager
    async def run():
        node = Node(Mailbox("router"))
        wanted = Latest(frozenset({catalog.manifest.id}))
        resources = RouterResources(
            node.mailbox,
            ModelTables(catalog, wanted, Latest({})),
            solitary_mesh(PeerId("me"), Mailbox("stages", 64)),
            Lanes(),
            Metrics(),
            HealthBoard(),
        )
        router = InferenceRouter(resources, SETTINGS, node.build, Pulse())
        async with trio.open_nursery() as nursery:
            await nursery.start(router.run)
            yield node
            nursery.cancel_scope.cancel()

    return run


async def test_a_killed_or_frozen_worker_costs_a_pause_and_no_text(opened):
    with trio.fail_after(120):
        async with opened() as node:
            whole = await node.answer()
            assert whole[2].completion_tokens > 50
            for how in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
                incarnation = node.executors[0].incarnation
                assert await node.answer(lambda how=how: worker().send_signal(how)) == whole
                assert node.executors[0].incarnation == incarnation + 1
    assert not [p for p in workers() if p.status() != psutil.STATUS_ZOMBIE]


async def test_several_answers_survive_the_same_loss_and_a_caller_that_leaves_frees_the_memory(opened):
    with trio.fail_after(120):
        async with opened() as node:
            whole, answers = await node.answer(), []

            async def ask(disturb):
                answers.append(await node.answer(disturb))

            async with trio.open_nursery() as nursery:
                for disturb in (None, None, lambda: worker().kill()):
                    nursery.start_soon(ask, disturb)
            assert answers == [whole] * 3
            assert await node.memory() == 0

            async with node.generate(count=900) as events:
                await anext(events)
                await anext(events)
                assert await node.memory() > 0
            with trio.fail_after(20):  # a caller that stayed and read no more would hold it for ever
                while await node.memory():
                    pass
