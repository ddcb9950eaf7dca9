"""Loading and unloading: what callers see of it, in virtual time."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from support.fake_executor import FakeExecutor
from trio.testing import wait_all_tasks_blocked

from meshnode.errors import NoRoute, OutOfMemory, Unavailable
from meshnode.flow.latest import Latest
from meshnode.inference.coordination import Patience
from meshnode.types.blocks import BlockRange
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import ModelId, PeerId, RequestId
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo, StageOffer


class Slow(FakeExecutor):
    """Loads in `load_time` seconds, after having refused as often as `refusals` says."""

    def __init__(self, load_time=0.0, refusals=0, **options):
        super().__init__(b"abc", **options)
        self.load_time, self.refusals, self.runs = load_time, refusals, 0

    async def run(self, *, task_status):
        self.runs += 1
        await trio.sleep(self.load_time)
        if self.refusals:
            self.refusals -= 1
            raise OutOfMemory("the weights need about 900 MiB and 200 MiB are free")
        await super().run(task_status=task_status)


class Small(FakeExecutor):
    """Has memory for `room` generations."""

    def __init__(self, room, **options):
        super().__init__(b"abc", **options)
        self.room = room

    @asynccontextmanager
    async def generate(self, request):
        if self.running >= self.room:
            raise OutOfMemory("the KV cache is full")
        async with super().generate(request) as events:
            yield events


async def test_a_model_that_cannot_be_loaded_says_why_at_once(bench, autojump_clock):
    """Callers waited for a worker that could not come, ten minutes each, and held turns that others could have used."""
    async with bench(lambda _: Slow(2.0, refusals=100)) as node:
        started = trio.current_time()
        with pytest.raises(Unavailable, match=r"first cannot be loaded now.*900 MiB"):
            await node.answer()
        with pytest.raises(Unavailable, match="900 MiB"):
            await node.answer()
        assert trio.current_time() - started < 3


async def test_it_answers_once_a_later_try_has_succeeded(bench, autojump_clock):
    executor = Slow(2.0, refusals=2)
    async with bench(lambda _: executor) as node:
        with pytest.raises(Unavailable):
            await node.answer()
        await trio.sleep(20)
        assert await node.answer(max_tokens=3) != ""
        (model,) = node.resources.models.loaded.value.values()
        assert model.is_ready
        assert executor.runs == 3
        assert model.restarts == 2


async def test_requests_wait_for_a_model_that_is_loading(bench, autojump_clock):
    async with bench(lambda _: Slow(30.0)) as node:
        assert await node.answer(max_tokens=3) != ""
        assert trio.current_time() >= 30


async def test_who_waits_for_a_model_gets_the_one_that_is_loaded_anew_as_more_of_it_has_come(
    bench, autojump_clock, monkeypatch
):
    async with bench(lambda _: Slow(30.0), wanted=()) as node:
        catalog = node.resources.models.catalog
        (manifest, *_) = catalog.manifests()
        held = {shard.id for shard in manifest.shards if shard.block != 0}
        monkeypatch.setattr(catalog, "held", lambda _: frozenset(held))

        async def more_comes():
            await trio.sleep(1)
            held.update(shard.id for shard in manifest.shards)
            catalog.revision.set(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(more_comes)
            with trio.fail_after(100):
                assert await node.answer(max_tokens=3) != ""


async def test_waiting_for_one_model_to_load_keeps_no_turn_from_another(bench, autojump_clock):
    async with bench(lambda number: Slow(500.0 if number else 0.0)) as node, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(node.answer, 1)
        await trio.sleep(1)
        with trio.fail_after(10):
            assert await node.answer(0, max_tokens=3) != ""
        nursery.cancel_scope.cancel()


async def test_waiting_for_what_others_do_not_load_keeps_no_turn_either(bench, autojump_clock):
    """Somebody has the rest of it on disk, or says so: each request for it held its turn for half a minute."""
    half = StageOffer(
        ModelId("77" * 32), "elsewhere", 4, 8, 1000, BlockRange(0, 2), True, False, "class", 0.1, 0.1, 1000
    )
    rest = Holding(half.model, half.name, 4, (BlockRange(2, 4),), head=True)
    offer = Offer(PeerId("p"), 7, 0.0, "1", (), (half,), holdings=(rest,))
    peer = PeerInfo(offer.peer, Liveness.ALIVE, connected=True, offer=offer, links=1)
    peers = SimpleNamespace(changed=Latest(0), peers=lambda: (peer,))
    patience = Patience(loading=8.0)
    async with (
        bench(lambda _: FakeExecutor(b"abc"), peers=peers, patience=patience) as node,
        trio.open_nursery() as nursery,
    ):
        request = GenerationRequest(RequestId("r"), half.name, (ChatMessage("user", "hi"),))

        async def ask():
            with pytest.raises(NoRoute, match=r"blocks 2:4 of 4; .* was not loaded in time"):
                await node.run(request)

        for _ in range(4):
            nursery.start_soon(ask)
        await trio.sleep(6)
        with trio.fail_after(1):
            assert await node.answer(0, max_tokens=3) != ""


async def test_a_model_that_is_wanted_twice_is_loaded_once(bench, autojump_clock):
    built = []

    def build(number):
        built.append(number)
        return Slow(5.0)

    async with bench(build, wanted=()) as node:
        ids = [manifest.id for manifest in node.resources.models.catalog.manifests()]
        for _ in range(20):
            node.resources.models.wanted.set(frozenset(ids))
            await trio.lowlevel.checkpoint()
        await trio.sleep(10)
        assert sorted(built) == [0, 1]


async def test_a_model_that_is_no_longer_wanted_is_unloaded_and_can_come_back(bench, autojump_clock):
    executor = Slow()
    async with bench(lambda _: executor) as node:
        wanted = node.resources.models.wanted.value
        await node.answer(max_tokens=1)
        node.resources.models.wanted.set(frozenset())
        await wait_all_tasks_blocked()
        node.resources.models.wanted.set(wanted)
        await trio.sleep(5)
        assert executor.runs == 2
        assert len(node.resources.models.loaded.value) == 1


async def test_an_answer_goes_on_over_a_worker_that_comes_back_whatever_those_of_other_models_went_through(
    bench, autojump_clock
):
    """The other one had crashed as often as this one now: nothing new was seen of this node, and the answer ended."""
    losses = [5], [3]
    async with bench(lambda number: FakeExecutor(b"abc", losses=losses[number]), wanted=(0, 1)) as node:
        assert await node.answer(1, max_tokens=10) != ""
        began = trio.current_time()
        assert await node.answer(0, max_tokens=10) != ""
        assert trio.current_time() - began < 5


async def test_memory_that_others_hold_is_waited_for(bench, autojump_clock):
    executor, answers = Small(1, pace=0.1), []

    async def ask(node):
        answers.append(await node.answer(max_tokens=20))

    async with bench(lambda _: executor) as node:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(ask, node)
        assert len(answers) == 2
        assert executor.most == 1
        assert 4 <= trio.current_time() < 6


async def test_what_does_not_fit_alone_is_refused(bench, autojump_clock):
    async with bench(lambda _: Small(0)) as node:
        with pytest.raises(OutOfMemory, match="KV cache"):
            await node.answer()


async def test_the_gauges_show_what_is_going_on_now(bench, autojump_clock):
    async with bench(lambda _: FakeExecutor(b"abc", pace=1.0)) as node, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(node.answer)
        await trio.sleep(5)
        text = node.resources.metrics.render().decode()
        assert "meshnode_inference_active_sessions 2.0" in text
        assert "meshnode_inference_queue_length 1.0" in text
        nursery.cancel_scope.cancel()
