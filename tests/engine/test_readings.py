"""What is read off a prompt, its vector or its likelihood, is the same however the text comes."""

import random

import numpy as np
import pytest
import torch
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation, StageReservation
from meshnode.engine.readings import Pooled
from meshnode.engine.stage_model import Rows, StageModel
from meshnode.engine.worker_messages import BatchLimits, Envelope, Generate, Progress, Reserve, Step, StepDone
from meshnode.errors import RequestError
from meshnode.types.generation import POOLINGS, SamplingParameters
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed

TOKENS = tuple(random.Random(1).choices(range(3, 259), k=300))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    manifest = tiny_manifest(write_tiny_llama(folder / "m.gguf", quantization="Q8_0"), folder / "shards")
    return StageModel.load(stage_of(manifest, folder / "shards"))


def ask(stage, messages, limits=None):
    answers = []
    batch = Batch(stage, limits or BatchLimits(96, 32), answers.append)
    for exchange, message in enumerate(messages, 1):
        batch.accept(Envelope(exchange, message))
    while not batch.is_idle:
        batch.step()
    return [envelope.message for envelope in answers], batch


def generate(tokens, pooling, name="s"):
    sampling = SamplingParameters(pooling=pooling) if pooling else SamplingParameters(temperature=0)
    return Generate(Generation(SessionId(name), tokens, len(tokens), 1, sampling), 64)


def events(messages):
    return {each.exchange: each for message in messages if isinstance(message, Progress) for each in message.sampled}


def states(stage, tokens):
    cache = stage.open_cache(len(tokens))
    (found,) = stage.forward([Rows(cache, torch.tensor(tokens), "states")])
    cache.close()
    return found.double().numpy()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("chunk", [300, 96, 1])
def test_a_vector_is_what_its_states_make(stage, pooling, chunk):
    messages, batch = ask(stage, [generate(TOKENS, pooling)], BatchLimits(chunk, chunk))
    raw = states(stage, TOKENS)
    made = {"mean": raw.mean(0), "cls": raw[0], "last": raw[-1]}[pooling]
    np.testing.assert_allclose(
        np.frombuffer(events(messages)[1].vector, "<f4"), made / np.linalg.norm(made), rtol=0, atol=1e-7
    )
    assert not batch.sessions


def test_texts_answers_and_shared_beginnings_do_not_mix(stage):
    alone = events(ask(stage, [generate(TOKENS, "mean")])[0])[1].vector
    token = events(ask(stage, [generate(TOKENS, "")])[0])[1].token
    questions = [generate(TOKENS, "", "a"), generate(TOKENS, "mean", "b"), generate(TOKENS[:5], "last", "c")]
    found = events(ask(stage, [*questions, generate(TOKENS, "mean", "d")])[0])
    assert found[1].token == token
    assert found[2].vector == found[4].vector == alone


def test_a_driven_session_gives_the_same_vector_again_after_a_loss(stage):
    alone = events(ask(stage, [generate(TOKENS, "mean")])[0])[1].vector
    name, count = SessionId("s"), len(TOKENS)
    wanted = StageReservation(stage.spec.blocks, True, True, count, count, (), SamplingParameters(pooling="mean"))
    steps = [Step(name, begin, TOKENS[begin : begin + 100], sample=begin == 200) for begin in (0, 100, 200)]
    messages, _ = ask(stage, [Reserve(name, wanted), *steps[:2], Reserve(name, wanted), *steps])
    assert [message.length for message in messages if hasattr(message, "length")] == [0, 0]  # read anew from the start
    (done,) = [message for message in messages if isinstance(message, StepDone) and message.token is not None]
    assert done.token.vector == alone


def test_an_unknown_pooling_is_refused(stage):
    (refused,), _ = ask(stage, [generate(TOKENS, "median")])
    assert isinstance(refused, Failed)
    assert "known: mean, cls, last" in refused.message


def test_rows_that_leave_a_gap_are_refused():
    reading = Pooled("mean")
    reading.add(0, torch.ones(4, 8))
    with pytest.raises(RequestError, match="do not follow the 0"):
        reading.add(2, torch.ones(1, 8))


def scored(tokens, more=1, top=2):
    sampling = SamplingParameters(temperature=0, top_logprobs=top, scored=tokens)
    return Generate(Generation(SessionId("s"), tokens, len(tokens), more, sampling), 64)


@pytest.mark.parametrize("chunk", [300, 70, 1])
def test_a_prompt_is_as_likely_as_when_it_was_an_answer(stage, chunk):
    prompt, sampling = TOKENS[:20], SamplingParameters(temperature=1.5, seed=4, top_logprobs=2)
    messages, _ = ask(stage, [Generate(Generation(SessionId("a"), prompt, 20, 150, sampling), 1000)])
    answer = [each for message in messages if isinstance(message, Progress) for each in message.sampled]
    whole = (*prompt, *(each.token for each in answer))
    messages, batch = ask(stage, [scored(whole, more=3)], BatchLimits(chunk, chunk))
    first, *rest = [each for message in messages if isinstance(message, Progress) for each in message.sampled]
    assert [event.token for event in first.prompt] == list(whole[1:])
    known = [(each.token, each.logprob, each.top) for each in answer]
    assert [(event.token, event.logprob, event.top) for event in first.prompt[19:]] == known
    assert all(not each.prompt for each in rest)
    assert len(rest) == 2
    assert not batch.sessions


def test_a_driven_session_tells_the_same(stage):
    messages, _ = ask(stage, [scored(TOKENS)])
    whole = events(messages)[1]
    name, count = SessionId("s"), len(TOKENS)
    sampling = SamplingParameters(temperature=0, top_logprobs=2, scored=TOKENS)
    wanted = StageReservation(stage.spec.blocks, True, True, count + 1, count, (), sampling)
    steps = [Step(name, begin, TOKENS[begin : begin + 150], sample=begin == 150) for begin in (0, 150)]
    messages, _ = ask(stage, [Reserve(name, wanted), *steps])
    assert messages[-1].token == whole.event()
