"""The continuous batch over a stage whose logits are a function of the tokens so far."""

import attrs
import pytest
import torch
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation
from meshnode.engine.worker_messages import (
    Accepted,
    BatchLimits,
    Cancel,
    Envelope,
    Generate,
    Grant,
    Progress,
    Release,
    Released,
    Step,
    StepDone,
)
from meshnode.errors import OutOfMemory
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed

GREEDY = SamplingParameters(temperature=0)
VOCABULARY = 320


class FakeCache:
    def __init__(self, stage, tokens):
        self.stage, self.reserved, self.tokens, self.open = stage, tokens, [], True

    @property
    def length(self):
        return len(self.tokens)

    def truncate(self, length):
        del self.tokens[length:]

    def close(self):
        assert self.open, "closed twice"
        self.open = False
        self.stage.reserved -= self.reserved


class FakeStage:
    """Remembers every step; the next token is a hash of all before it."""

    def __init__(self, spec, room=10_000):
        self.spec, self.room, self.reserved, self.steps, self.fails = spec, room, 0, [], None

    def open_cache(self, tokens):
        if self.reserved + tokens > self.room:
            raise OutOfMemory(f"{tokens} do not fit")
        self.reserved += tokens
        return FakeCache(self, tokens)

    def forward(self, rows):
        if self.fails is not None:
            raise self.fails
        assert len({id(entry.cache) for entry in rows}) == len(rows), "a session twice in one step"
        self.steps.append([len(entry.inputs) for entry in rows])
        results = []
        for entry in rows:
            assert entry.cache.open
            entry.cache.tokens += entry.inputs.tolist()
            assert entry.cache.length <= entry.cache.reserved
            logits = torch.zeros(1 if entry.logits == "last" else 0, VOCABULARY)
            if len(logits):
                logits[0, next_token(entry.cache.tokens)] = 1.0
            results.append(logits)
        return results


def next_token(tokens):
    return hash(tuple(tokens)) % VOCABULARY


def continuation(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return stage_of(tiny_manifest(write_tiny_llama(folder / "m.gguf"), folder / "shards"), folder / "shards")


class Desk:
    """A batch and what it has said, by exchange."""

    def __init__(self, stage, limits=None):
        self.said = []
        self.batch = Batch(stage, limits or BatchLimits(512, 128), self.said.append)

    def ask(self, exchange, message):
        self.batch.accept(Envelope(exchange, message))

    def generate(self, exchange, prompt, count, window=10_000, **options):
        self.ask(exchange, Generate(generation(prompt, count, **options), window))

    def run(self, steps=10_000):
        for _ in range(steps):
            if self.batch.is_idle:
                return
            self.batch.step()

    def tokens(self, exchange):
        progress = [envelope.message for envelope in self.said if isinstance(envelope.message, Progress)]
        return [sampled.token for message in progress for sampled in message.sampled if sampled.exchange == exchange]

    def ended(self):
        return [number for e in self.said if isinstance(e.message, Progress) for number in e.message.ended]

    def answers(self, exchange, kind):
        return [e.message for e in self.said if e.exchange == exchange and isinstance(e.message, kind)]


def generation(prompt, count, generated=(), ends=frozenset()):
    return Generation(SessionId("s"), (*prompt, *generated), len(prompt), count, GREEDY, ends)


def prompt_of(length, seed=1):
    return [(7 * seed + 3 * i) % VOCABULARY for i in range(length)]


def test_a_prompt_alone_goes_in_wide_chunks(spec):
    desk = Desk(stage := FakeStage(spec))
    desk.generate(1, prompt_of(1000), 3)
    desk.run()
    assert stage.steps == [[512], [488], [1], [1]]
    assert desk.tokens(1) == continuation(prompt_of(1000), 3)


def test_a_long_prompt_advances_in_narrow_chunks_between_the_tokens_of_others(spec):
    desk = Desk(stage := FakeStage(spec))
    desk.generate(1, prompt_of(4), 50)
    desk.run(2)
    desk.generate(2, prompt_of(300, seed=2), 5)
    desk.run(4)
    assert stage.steps[2:6] == [[1, 128], [1, 128], [1, 44], [1, 1]]
    assert len(desk.tokens(1)) == 6, "a token in every step"


def test_every_generation_gets_what_it_would_get_alone(spec):
    desk = Desk(FakeStage(spec))
    wishes = {number: (prompt_of(17 * number % 200 + 1, seed=number), number + 3) for number in range(1, 13)}
    for number, (prompt, count) in wishes.items():
        desk.generate(number, prompt, count)
        desk.run(2)
    desk.run()
    for number, (prompt, count) in wishes.items():
        assert desk.tokens(number) == continuation(prompt, count)
    assert sorted(desk.ended()) == sorted(wishes)


def test_no_step_decodes_more_than_the_limit_and_nobody_is_forgotten(spec):
    desk = Desk(stage := FakeStage(attrs.evolve(spec, max_batch=4)))
    for number in range(1, 11):
        desk.generate(number, prompt_of(2, seed=number), 40)
    desk.run(30)
    assert max(map(len, stage.steps)) <= 5
    desk.run(60)
    counts = [len(desk.tokens(number)) for number in range(1, 11)]
    assert max(counts) - min(counts) <= 12
    desk.run()
    assert set(desk.ended()) == set(range(1, 11))


def test_one_step_says_all_its_tokens_in_one_message(spec):
    desk = Desk(FakeStage(spec))
    for number in range(1, 5):
        desk.generate(number, prompt_of(1, seed=number), 20)
    desk.said.clear()
    desk.batch.step()
    assert [len(envelope.message.sampled) for envelope in desk.said] == [4]


def test_a_generation_ends_at_an_end_token_its_count_or_the_context(spec):
    stage = FakeStage(attrs.evolve(spec, context_length=64))
    desk = Desk(stage)
    found = continuation(prompt_of(3), 10)
    desk.generate(1, prompt_of(3), 30, ends=frozenset({found[4]}))
    desk.generate(2, prompt_of(3), 7)
    desk.generate(3, prompt_of(3), 1000)
    desk.run()
    assert desk.tokens(1) == found[: found.index(found[4]) + 1]
    assert len(desk.tokens(2)) == 7
    assert len(desk.tokens(3)) == 61
    assert stage.reserved == 0


def test_an_answer_that_is_resumed_goes_on_where_it_was(spec):
    desk = Desk(FakeStage(spec))
    whole = continuation(prompt_of(5), 20)
    desk.ask(1, Generate(generation(prompt_of(5), 8, generated=whole[:12]), 100))
    desk.run()
    assert desk.tokens(1) == whole[12:]


def test_a_reader_that_does_not_read_pauses_its_own_session_only(spec):
    desk = Desk(FakeStage(spec))
    desk.generate(1, prompt_of(2), 100, window=10)
    desk.generate(2, prompt_of(2, seed=2), 30)
    desk.run()
    assert (len(desk.tokens(1)), len(desk.tokens(2))) == (10, 30)
    assert desk.batch.is_idle
    desk.ask(1, Grant(5))
    desk.run()
    assert len(desk.tokens(1)) == 15


def test_cancelling_frees_the_memory_before_the_next_step(spec):
    desk = Desk(stage := FakeStage(spec))
    desk.generate(1, prompt_of(900), 100)
    desk.batch.step()
    desk.ask(1, Cancel())
    assert (stage.reserved, desk.batch.sessions) == (0, 0)
    desk.ask(1, Cancel())
    desk.run()
    assert stage.steps == [[512]]


def test_the_whole_answer_is_reserved_first_and_a_refusal_keeps_nothing(spec):
    stage = FakeStage(spec, room=500)
    desk = Desk(stage)
    desk.generate(1, prompt_of(100), 300)
    assert stage.reserved == 400
    desk.generate(2, prompt_of(100), 300)
    assert [failed.code for failed in desk.answers(2, Failed)] == ["out_of_memory"]
    assert stage.reserved == 400
    assert desk.answers(1, Accepted)
    assert not desk.answers(2, Accepted)
    desk.run()
    assert len(desk.tokens(1)) == 300


@pytest.mark.parametrize(
    "wrong",
    [
        generation([], 5),
        generation([1, 2], 0),
        generation([1, -2], 5),
        generation([VOCABULARY], 5),
        generation(prompt_of(5000), 5),
        attrs.evolve(generation([1, 2], 5), prompt_length=3),
        attrs.evolve(generation([1, 2], 5), prompt_length=0),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(spec, wrong):
    desk = Desk(stage := FakeStage(spec))
    desk.ask(1, Generate(wrong, 64))
    assert [failed.code for failed in desk.answers(1, Failed)] == ["invalid_request"]
    assert stage.reserved == 0
    assert desk.batch.is_idle


def test_memory_that_runs_out_in_a_step_ends_the_sessions_in_it_and_no_others(spec):
    desk = Desk(stage := FakeStage(spec))
    desk.generate(1, prompt_of(3), 10)
    stage.fails = OutOfMemory("the device is full")
    desk.run()
    assert [failed.code for failed in desk.answers(1, Failed)] == ["out_of_memory"]
    assert stage.reserved == 0
    stage.fails = None
    desk.generate(2, prompt_of(3), 10)
    desk.run()
    assert len(desk.tokens(2)) == 10


def test_steps_of_a_session_grow_its_cache_and_releasing_frees_it(spec):
    desk = Desk(stage := FakeStage(spec))
    session = SessionId("ring")
    desk.ask(1, Step(session, 0, (1, 2, 3)))
    desk.ask(2, Step(session, 3, (4,), sampling=GREEDY))
    desk.run()
    assert desk.answers(1, StepDone)[0].token is None
    assert desk.answers(2, StepDone)[0].token.token == next_token([1, 2, 3, 4])
    desk.ask(3, Step(session, 2, (9,), sampling=GREEDY))  # a position below the length goes back
    desk.ask(4, Step(session, 7, (9,)))
    desk.run()
    assert desk.answers(3, StepDone)[0].token.token == next_token([1, 2, 9])
    assert desk.answers(4, Failed)
    desk.ask(5, Release(session))
    desk.ask(6, Release(session))
    assert desk.answers(5, Released)
    assert desk.answers(6, Released)
    assert stage.reserved == 0


@pytest.mark.parametrize(
    "wrong",
    [Step(SessionId("new"), 5, (1,)), Step(SessionId("new"), 0), Step(SessionId("new"), 0, (VOCABULARY,))],
)
def test_a_step_that_is_refused_keeps_nothing(spec, wrong):
    desk = Desk(stage := FakeStage(spec))
    desk.ask(1, wrong)
    desk.run()
    assert [failed.code for failed in desk.answers(1, Failed)] == ["invalid_request"]
    assert (stage.reserved, desk.batch.sessions) == (0, 0)
