"""The router over a fake executor, in virtual time."""

from contextlib import asynccontextmanager

import attrs
import pytest
import structlog
import trio
from support.fake_executor import FakeExecutor
from support.tiny_gguf import write_tiny_llama
from trio.testing import wait_all_tasks_blocked

from meshnode.config.schema import InferenceConfig
from meshnode.errors import (
    ContextOverflow,
    DeadlineExceeded,
    NoRoute,
    RequestError,
    SessionLost,
    Unavailable,
    UnknownModel,
)
from meshnode.files.importing import import_gguf
from meshnode.files.shard_file import shard_path
from meshnode.flow.lanes import Lanes
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.assets import ModelAssets
from meshnode.inference.calls import Delegated, open_generations
from meshnode.inference.model_loading import ModelTables
from meshnode.inference.models import EngineSettings
from meshnode.inference.router import InferenceRouter, RouterResources, RouterSettings
from meshnode.node.mesh import solitary_mesh
from meshnode.observe.metrics import Metrics
from meshnode.supervise.health import HealthBoard
from meshnode.supervise.subsystem import Pulse
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    SamplingAdvice,
    SamplingParameters,
    Started,
)
from meshnode.types.ids import PeerId, RequestId

ENGINE = EngineSettings("cpu", 1, 0, 1 << 20, 8)
SETTINGS = RouterSettings(ENGINE, queue_length=4, max_concurrent=2, request_timeout=100.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return import_gguf(write_tiny_llama(folder / "m.gguf"), folder), folder


class OneModel:
    """A catalog of one model."""

    def __init__(self, manifest, folder):
        self.manifest, self.folder, self.missing = manifest, folder, frozenset()
        self.revision = Latest(0)

    def manifests(self):
        return (self.manifest,)

    def aliases(self, model):
        return ()

    def resolve(self, name):
        if name != self.manifest.name:
            raise UnknownModel(f"there is no model {name!r}; there are: {self.manifest.name}")
        return self.manifest

    def held(self, model):
        return frozenset(shard.id for shard in self.manifest.shards) - self.missing

    def path(self, shard):
        return shard_path(self.folder, shard)


class InlineLanes(Lanes):
    """Runs blocking work at once: a thread would not know of virtual time."""

    async def run(self, lane, function, *args, abandon_on_cancel=False):
        await trio.lowlevel.checkpoint()
        return function(*args)


@attrs.define
class World:
    mailbox: Mailbox
    executor: FakeExecutor
    router: InferenceRouter
    resources: RouterResources
    name: str

    def request(self, text="hi", **options):
        messages = (ChatMessage("user", text),)
        return GenerationRequest(RequestId("r"), self.name, messages, **options)

    async def run(self, *requests):
        async with open_generations(self.mailbox, requests) as events:
            return [item async for item in events]

    async def text(self, request):
        events = [event for _, event in await self.run(request)]
        return "".join(event.text for event in events if isinstance(event, Delta)), events[-1]


@asynccontextmanager
async def world(model, text=b"Hello, world! ", settings=SETTINGS, missing=(), **options):
    manifest, folder = model
    catalog = OneModel(manifest, folder)
    catalog.missing = frozenset(missing)
    tokenizer = next(shard for shard in manifest.shards if shard.kind.value == "tokenizer")
    encode = ModelAssets.load(shard_path(folder, tokenizer.id)).tokenizer.encode
    tokens = text if isinstance(text, list) else encode(text.decode())
    executor = FakeExecutor(tokens, **options)
    mailbox = Mailbox("router")
    resources = RouterResources(
        mailbox,
        ModelTables(catalog, Latest(frozenset({manifest.id})), Latest({})),
        solitary_mesh(PeerId("me"), Mailbox("stages", 64)),
        InlineLanes(),
        Metrics(),
        HealthBoard(),
    )
    router = InferenceRouter(resources, settings, lambda spec: executor, Pulse())
    async with trio.open_nursery() as nursery:
        await nursery.start(router.run)
        yield World(mailbox, executor, router, resources, manifest.name)
        nursery.cancel_scope.cancel()


async def test_an_answer_begins_flows_and_ends(model, autojump_clock):
    async with world(model) as node:
        events = [event for _, event in await node.run(node.request(max_tokens=5))]
    assert isinstance(events[0], Started)
    assert events[0].prompt_tokens == len("user\nhi\nassistant\n") + 3
    assert "".join(event.text for event in events[1:-1]) == "Hello"
    assert events[-1] == Finished(FinishReason.LENGTH, events[-1].usage, None)
    assert events[-1].usage.completion_tokens == 5


@pytest.mark.parametrize("as_advised", [True, False])
async def test_the_model_is_sampled_as_it_advises_unless_the_caller_says_how(model, autojump_clock, as_advised):
    async with world(model) as node:
        await node.run(attrs.evolve(node.request(max_tokens=1), as_advised=as_advised))
        (started,) = node.executor.started
    assert started.sampling == (SamplingAdvice().applied(SamplingParameters()) if as_advised else SamplingParameters())


async def test_an_end_token_is_no_text(model, autojump_clock):
    async with world(model, [*b"abc", 2]) as node:
        text, finished = await node.text(node.request())
    assert finished.reason is FinishReason.STOP
    assert finished.usage.completion_tokens == 3
    assert len(text) == 3


async def test_a_stop_sequence_cuts_and_names_itself(model, autojump_clock):
    async with world(model) as node:
        text, finished = await node.text(node.request(stop=("o, w", "zzz")))
        assert (text, finished.reason, finished.stop_sequence) == ("Hell", FinishReason.STOP, "o, w")
        assert node.executor.running == 0


async def test_held_text_comes_out_at_the_end(model, autojump_clock):
    async with world(model) as node:
        text, finished = await node.text(node.request(stop=("Hello, worms",), max_tokens=10))
    assert (text, finished.reason) == ("Hello, wor", FinishReason.LENGTH)


async def test_several_generations_share_one_stream(model, autojump_clock):
    async with world(model) as node:
        items = await node.run(node.request(max_tokens=3), node.request(max_tokens=4))
    ends = {index: event for index, event in items if isinstance(event, Finished)}
    assert {index: event.usage.completion_tokens for index, event in ends.items()} == {0: 3, 1: 4}


async def test_logprobs_cover_every_token(model, autojump_clock):
    async with world(model) as node:
        request = node.request(max_tokens=6, sampling=SamplingParameters(top_logprobs=1))
        deltas = [event for _, event in await node.run(request) if isinstance(event, Delta)]
    assert sum(len(delta.logprobs) for delta in deltas) == 6
    assert deltas[0].logprobs[0].token == "H"
    assert deltas[0].logprobs[0].top[0].logprob == -0.5


@pytest.mark.parametrize("losses", [[0], [3], [3, 7], [1, 2, 3]])
async def test_a_lost_worker_costs_a_pause_and_no_text(model, autojump_clock, losses):
    async with world(model) as node:
        expected = await node.text(node.request(max_tokens=20))
    async with world(model, losses=losses) as node:
        text, finished = await node.text(node.request(max_tokens=20))
        assert (text, finished.usage) == (expected[0], expected[1].usage)
        assert finished.recoveries == len(losses)
        assert len(node.executor.started) == 1 + len(losses)


async def test_a_worker_that_stays_away_ends_the_answer(model, autojump_clock):
    async with world(model, losses=[2], returns=False) as node:
        with pytest.raises(SessionLost, match="did not come back"):
            await node.text(node.request(max_tokens=20))


async def test_a_worker_that_dies_again_and_again_ends_the_answer(model, autojump_clock):
    async with world(model, losses=[1] * 6) as node:
        with pytest.raises(SessionLost, match="lost 6 times"):
            await node.text(node.request(max_tokens=20))
        assert (await node.text(node.request(max_tokens=1)))[0] == "H"


async def test_a_caller_that_leaves_ends_its_generation(model, autojump_clock):
    async with world(model) as node:
        async with open_generations(node.mailbox, [node.request()]) as events:
            await anext(aiter(events))
            await trio.sleep(0.1)
            assert node.executor.running == 1
        await wait_all_tasks_blocked()
        assert node.executor.running == 0


async def test_a_caller_that_does_not_read_stops_its_generation_only(model, autojump_clock):
    async with world(model) as node, open_generations(node.mailbox, [node.request()]) as slow:
        await anext(aiter(slow))
        await trio.sleep(100 * node.executor.pace)
        assert (await node.text(node.request(max_tokens=50)))[1].usage.completion_tokens == 50
        assert 32 <= len(slow.waiting()) <= 34


async def test_no_more_run_at_once_than_are_allowed(model, autojump_clock):
    async with world(model) as node:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(node.text, node.request(max_tokens=10))
        assert node.executor.most == 2


async def test_sixty_four_at_once_are_all_answered_in_their_turn(model, autojump_clock):
    """With the queue as it is set unless somebody sets it: nobody is refused, nobody begins before who came earlier."""
    begun, ended = [], []
    queue = InferenceConfig()
    settings = attrs.evolve(SETTINGS, queue_length=queue.queue_length, max_concurrent=queue.max_concurrent)

    async def ask(node, number):
        async with open_generations(node.mailbox, [node.request(max_tokens=20)]) as events:
            async for _, event in events:
                if isinstance(event, Started):
                    begun.append(number)
                if isinstance(event, Finished):
                    ended.append(event.usage.completion_tokens)

    async with world(model, settings=settings) as node:
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(ask, node, number)
                await trio.sleep(0.001)
        assert begun == list(range(64))
        assert ended == [20] * 64
        assert (node.executor.running, node.executor.most) == (0, queue.max_concurrent)


async def test_a_prompt_that_is_too_long_names_both_numbers(model, autojump_clock):
    async with world(model) as node:
        with pytest.raises(ContextOverflow, match=r"1027 tokens.* 1024"):
            await node.text(node.request("x" * (1024 - len("user\nassistant\n\n"))))
        with pytest.raises(ContextOverflow, match="at least"):
            await node.text(node.request("x" * 10_000_000))
        _, finished = await node.text(node.request("x" * 1000, max_tokens=500))
        assert finished.reason is FinishReason.LENGTH
        assert finished.usage.completion_tokens == 1024 - finished.usage.prompt_tokens


async def test_an_unknown_model_lists_what_there_is(model, autojump_clock):
    async with world(model) as node:
        with pytest.raises(UnknownModel, match="tiny-llama"):
            await node.text(attrs.evolve(node.request(), model="gpt-9"))
        assert (await node.text(attrs.evolve(node.request(max_tokens=2), model="auto")))[0] == "He"


async def test_a_part_of_a_model_cannot_answer_and_says_so(model, autojump_clock):
    block = model[0].shards[2]
    async with world(model, missing=[block.id]) as node:
        with pytest.raises(NoRoute, match="blocks 0:1"):
            await node.text(node.request())


async def test_a_deadline_ends_an_answer_by_name(model, autojump_clock):
    async with world(model, pace=30.0) as node:
        with pytest.raises(DeadlineExceeded, match="100 s"):
            await node.text(node.request())
        assert node.executor.running == 0


async def test_an_empty_conversation_is_an_error_of_the_caller(model, autojump_clock):
    async with world(model) as node:
        request = attrs.evolve(node.request(), messages=(), prompt="")
        with pytest.raises(RequestError, match="empty"):
            await node.text(request)


async def test_draining_finishes_what_runs_and_refuses_the_rest(model, autojump_clock):
    async with world(model) as node:
        results = []

        async def ask():
            results.append(await node.text(node.request(max_tokens=100)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.2)
            with trio.fail_after(5):
                nursery.start_soon(node.router.drain)
                await trio.sleep(0.01)
                with pytest.raises(Unavailable, match="shutting down"):
                    await node.text(node.request())
        assert results[0][1].usage.completion_tokens == 100


async def test_a_router_that_ends_refuses_what_it_has(model, autojump_clock):
    async def ask(node):
        with pytest.raises(Unavailable):
            await node.text(node.request())

    async with trio.open_nursery() as nursery:
        async with world(model) as node:
            nursery.start_soon(ask, node)
            await trio.sleep(0.1)
        with pytest.raises(Unavailable, match="restarting"):
            await node.text(node.request())


async def test_every_end_is_counted(model, autojump_clock):
    with structlog.testing.capture_logs() as logs:
        async with world(model) as node:
            await node.text(node.request(max_tokens=3))
            with pytest.raises(ContextOverflow):
                await node.text(node.request("x" * 5000))
            await wait_all_tasks_blocked()
            text = node.resources.metrics.render().decode()
    told = [
        (line["log_level"], line["error"], line["completion_tokens"]) for line in logs if line["event"] == "generation"
    ]
    assert told == [("debug", None, 3), ("debug", ContextOverflow.code, 0)]
    assert 'meshnode_inference_requests_total{outcome="ok"} 1.0' in text
    assert 'meshnode_inference_requests_total{outcome="error"} 1.0' in text
    assert "meshnode_inference_completion_tokens_total 3.0" in text


async def test_what_is_done_for_a_peer_has_no_other_line_than_this(model, autojump_clock):
    with structlog.testing.capture_logs() as logs:
        async with world(model) as node:
            request = node.request("sesame", max_tokens=3)
            async with open_generations(node.mailbox, [request], Delegated(hops=1)) as events:
                assert [event async for _, event in events]
            await wait_all_tasks_blocked()
    (told,) = [line for line in logs if line["log_level"] == "info"]
    assert (told["event"], told["outcome"], told["completion_tokens"]) == ("generation", "ok", 3)
    assert "sesame" not in repr(logs)


async def test_an_echo_comes_first_and_counts_as_prompt(model, autojump_clock):
    async with world(model) as node:
        request = attrs.evolve(node.request(max_tokens=3), messages=(), prompt="Once", echo=True)
        text, finished = await node.text(request)
    assert text.startswith("Once")
    assert len(text) > len("Once")
    assert finished.usage.completion_tokens == 3


async def test_tokens_will_do_for_a_prompt(model, autojump_clock):
    async with world(model) as node:
        request = attrs.evolve(node.request(max_tokens=1), messages=(), prompt_tokens=(5, 6, 7))
        await node.run(request)
        assert node.executor.started[0].tokens == (5, 6, 7)
        with pytest.raises(RequestError, match="999999 is not a token"):
            await node.run(attrs.evolve(request, prompt_tokens=(999_999,)))
