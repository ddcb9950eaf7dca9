"""The worker process: real processes, a tiny model."""

import signal

import attrs
import psutil
import pytest
import torch
import trio
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.executor import Generation, StageReservation, StageStep
from meshnode.engine.process_executor import ProcessExecutor
from meshnode.engine.stage_model import Rows, StageModel
from meshnode.engine.worker_messages import Envelope, StepDone
from meshnode.errors import EngineError, OutOfMemory, RequestError, SessionLost, WorkerLost
from meshnode.types.blocks import BlockRange
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId

pytestmark = pytest.mark.processes

GREEDY = SamplingParameters(temperature=0)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    manifest = tiny_manifest(write_tiny_llama(folder / "m.gguf"), folder / "shards")
    return stage_of(manifest, folder / "shards", cache=64 << 20)


def generation(count=20, prompt=(5, 6, 7), sampling=GREEDY, session="s"):
    return Generation(SessionId(session), tuple(prompt), len(prompt), count, sampling)


async def collect(executor, request):
    async with executor.generate(request) as tokens:
        return [event.token async for event in tokens]


def workers():
    return [child for child in psutil.Process().children() if "meshnode.engine.worker" in " ".join(child.cmdline())]


async def started(nursery, spec, **options):
    executor = ProcessExecutor(spec, **options)
    await nursery.start(executor.run)
    return executor


async def test_an_answer_depends_on_its_request_alone_and_leaves_nothing_behind(spec, nursery):
    """Asked again, resumed, in the company of others, and up to an end token or the end of the context."""
    executor = await started(nursery, spec)
    first = await collect(executor, generation())
    assert len(first) == 20
    assert await collect(executor, generation()) == first

    for sampling in (GREEDY, SamplingParameters(seed=11, temperature=1.2, top_p=0.95)):
        whole = await collect(executor, generation(40, sampling=sampling))
        resumed = attrs.evolve(generation(40 - 13, sampling=sampling), tokens=(5, 6, 7, *whole[:13]), prompt_length=3)
        assert await collect(executor, resumed) == whole[13:]

    prompts = [tuple(range(3, 3 + length)) for length in (1, 5, 40, 150, 2, 90, 7, 11, 60, 3)]
    alone = [await collect(executor, generation(25, prompt)) for prompt in prompts]
    together = {}

    async def one(index, prompt):
        together[index] = await collect(executor, generation(25, prompt, session=f"s{index}"))

    async with trio.open_nursery() as crowd:
        for index, prompt in enumerate(prompts):
            crowd.start_soon(one, index, prompt)
    assert [together[index] for index in range(len(prompts))] == alone

    ends = attrs.evolve(generation(20), end_tokens=frozenset({first[4]}))
    assert await collect(executor, ends) == first[: first.index(first[4]) + 1]
    assert len(await collect(executor, generation(5000))) == spec.context_length - 3

    stats = await executor.stats()
    assert (stats.sessions, stats.cache_bytes_used) == (0, 0)
    assert stats.decode_tokens >= 38
    assert stats.weight_bytes > 0
    nursery.cancel_scope.cancel()


async def test_who_does_not_read_pauses_alone_who_leaves_frees_its_memory_and_cancelling_stops_the_process(spec):
    async with trio.open_nursery() as nursery:
        executor = await started(nursery, spec)
        pid = workers()[0].pid
        async with executor.generate(generation(900)) as slow:
            await anext(aiter(slow))
            assert len(await collect(executor, generation(300, session="quick"))) == 300
            before = (await executor.stats()).decode_tokens
            await trio.sleep(0.2)
            assert (await executor.stats()).decode_tokens == before
            assert len([event.token async for event in slow]) == 899

        async with executor.generate(generation(900)) as tokens:
            assert (await anext(aiter(tokens))).token >= 0
            assert (await executor.stats()).cache_bytes_used > 0
        with trio.fail_after(10):
            while (await executor.stats()).cache_bytes_used:
                pass
        assert (await executor.stats()).sessions == 0
        nursery.cancel_scope.cancel()
    assert not psutil.pid_exists(pid)


async def test_too_much_is_refused_and_keeps_nothing(spec, nursery):
    executor = await started(nursery, attrs.evolve(spec, cache_bytes=300_000))
    with pytest.raises(OutOfMemory, match="KV cache needs"):
        await collect(executor, generation(1000))
    with pytest.raises(RequestError, match="token ids"):
        await collect(executor, generation(3, (99999,)))
    assert len(await collect(executor, generation(10))) == 10
    nursery.cancel_scope.cancel()


async def test_killing_the_worker_ends_what_is_in_hand(spec):
    async def run(executor, task_status):
        with pytest.RaisesGroup(WorkerLost, flatten_subgroups=True):
            await executor.run(task_status=task_status)

    async with trio.open_nursery() as nursery:
        executor = ProcessExecutor(spec)
        await nursery.start(run, executor)
        with pytest.raises(WorkerLost):  # noqa: PT012
            async with executor.generate(generation(900)) as tokens:
                await anext(aiter(tokens))
                workers()[0].send_signal(signal.SIGKILL)
                async for _ in tokens:
                    pass
    assert workers() == []
    with pytest.raises(WorkerLost):
        await executor.stats()


async def test_a_frozen_worker_is_found_out(spec):
    async def run(executor, task_status):
        with pytest.RaisesGroup(WorkerLost, flatten_subgroups=True):
            await executor.run(task_status=task_status)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            executor = ProcessExecutor(spec, ping_interval=0.1, silence_limit=1.0)
            await nursery.start(run, executor)
            workers()[0].send_signal(signal.SIGSTOP)
    assert workers() == []


async def test_a_load_that_cannot_be_says_why(spec):
    """Too little memory: test_worker.py."""
    with pytest.RaisesGroup(pytest.RaisesExc(EngineError, match="CUDA"), flatten_subgroups=True):
        await ProcessExecutor(attrs.evolve(spec, device="cuda")).run()


def greedy(spec, prompt, count):
    """Return the answer of the whole model, in this process."""
    stage, tokens = StageModel.load(spec), list(prompt)
    cache = stage.open_cache(len(prompt) + count)
    rows = tokens
    for _ in range(count):
        (logits,) = stage.forward([Rows(cache, torch.tensor(rows))])
        rows = [int(logits[-1].argmax())]
        tokens += rows
    cache.close()
    return tokens[len(prompt) :]


async def test_two_stages_make_the_same_tokens_as_one(spec, tmp_path):
    manifest = tiny_manifest(write_tiny_llama(tmp_path / "m.gguf"), tmp_path / "shards")
    async with trio.open_nursery() as nursery:
        first = await started(nursery, stage_of(manifest, tmp_path / "shards", 0, 1))
        second = await started(nursery, stage_of(manifest, tmp_path / "shards", 1, 2))
        assert second.incarnation > first.incarnation  # what is loaded anew is told from what was there before
        expected = greedy(stage_of(manifest, tmp_path / "shards"), (5, 6, 7), 12)
        tokens, found = [5, 6, 7], []
        session = SessionId("ring")
        position = 0
        with pytest.raises(SessionLost):
            await first.step(StageStep(session, 0, tokens=(5,)))
        reserved = [
            await first.reserve(session, StageReservation(BlockRange(0, 1), True, False, 64)),
            await second.reserve(session, StageReservation(BlockRange(1, 2), False, True, 64, 3, (), GREEDY)),
        ]
        assert reserved == [0, 0]
        for _ in range(12):
            middle = await first.step(StageStep(session, position, tokens=tuple(tokens[position:])))
            assert len(middle.activations) == 2 * 256 * (len(tokens) - position)
            end = await second.step(StageStep(session, position, activations=middle.activations, sample=True))
            position = len(tokens)
            found.append(end.token.token)
            tokens.append(end.token.token)
        assert found == expected
        with pytest.raises(RequestError, match="gap"):
            await first.step(StageStep(session, 40, tokens=(5,)))
        with pytest.raises(RequestError, match="bytes are not rows"):
            await second.step(StageStep(session, position, activations=b"abc"))
        with pytest.raises(RequestError, match="not finite"):
            await second.step(StageStep(session, position, activations=b"\xc0\x7f" * 256))
        with pytest.raises(RequestError, match="part of the model"):
            await collect(first, generation())
        await first.release(session)
        await second.release(session)
        assert (await second.stats()).cache_bytes_used == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", [b"\xc0\x7f", b"\x80\xff"], ids=["none", "infinite"])
async def test_rows_that_a_broken_model_makes_are_not_handed_on_as_if_they_were_some(spec, monkeypatch, number):
    """The next stage would hold them against us."""

    async def ask(_executor, _message, _body=b""):
        return Envelope(1, StepDone(0), body)

    monkeypatch.setattr(ProcessExecutor, "_ask", ask)
    executor, step = ProcessExecutor(spec), StageStep(SessionId("s"), 0, (1,))
    for body in (b"", bytes(8)):
        assert (await executor.step(step)).activations == body
    body = bytes(6) + number
    with pytest.raises(EngineError, match="not finite"):
        await executor.step(step)
