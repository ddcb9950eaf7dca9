"""The continuous batch over a stage whose logits are a function of the tokens so far."""

import attrs
import pytest
import torch
from support.stages import stage_of, tiny_manifest
from support.tiny_gguf import write_tiny_llama

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation, StageReservation
from meshnode.engine.prefixes import PAGE, PageNames
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
    Reserve,
    Reserved,
    Step,
    StepDone,
)
from meshnode.errors import OutOfMemory
from meshnode.types.blocks import BlockRange
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

    @property
    def capacity(self):
        return self.reserved

    def truncate(self, length):
        del self.tokens[length:]

    def share(self, contents):
        """Find the tokens of pages that were kept under these names."""
        before = self.length
        if before % PAGE == 0:
            for content in contents[before // PAGE :]:
                if content not in self.stage.kept:
                    break
                self.tokens += self.stage.kept[content]
        return self.length - before

    def keep(self, contents):
        for index, content in enumerate(contents[: self.length // PAGE]):
            self.stage.kept.setdefault(content, self.tokens[index * PAGE : (index + 1) * PAGE])

    def close(self):
        assert self.open, "closed twice"
        self.open = False
        self.stage.reserved -= self.reserved


class FakeStage:
    """Remembers every step; the next token is a hash of all before it."""

    def __init__(self, spec, room=10_000):
        self.spec, self.room, self.reserved, self.steps, self.fails = spec, room, 0, [], None
        self.kept = {}  # tokens of full pages, by name
        self.favourites = []  # if any, the likeliest tokens whatever came before

    def open_cache(self, tokens):
        if self.reserved + tokens > self.room:
            raise OutOfMemory(f"{tokens} do not fit")
        self.reserved += tokens
        return FakeCache(self, tokens)

    def forward(self, rows, part=None):
        if self.fails is not None:
            raise self.fails
        assert len({id(entry.cache) for entry in rows}) == len(rows), "a session twice in one step"
        has_head = part is None or part.head
        self.steps.append([len(entry.inputs) for entry in rows])
        results = []
        for entry in rows:
            assert entry.cache.open
            entry.cache.tokens += entry.inputs.tolist()
            assert entry.cache.length <= entry.cache.reserved
            if not has_head:
                results.append(torch.zeros(len(entry.inputs), 8, dtype=torch.bfloat16))
                continue
            logits = torch.zeros(1 if entry.logits == "last" else 0, VOCABULARY)
            if len(logits) and self.favourites:
                logits[0, self.favourites] = torch.linspace(2.0, 1.5, len(self.favourites))
            elif len(logits):
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
    assert max(step.count(1) for step in stage.steps) == 4
    assert max(map(len, stage.steps)) <= 8, "as many prompts beside them"
    desk.run(60)
    counts = [len(desk.tokens(number)) for number in range(1, 11)]
    assert max(counts) - min(counts) <= 12
    desk.run()
    assert set(desk.ended()) == set(range(1, 11))


def test_sixty_four_at_once_begin_in_turn_and_leave_nothing(spec):
    desk = Desk(stage := FakeStage(attrs.evolve(spec, max_batch=8)))
    for number in range(64):
        desk.generate(number, prompt_of(5, seed=number), 30)
    desk.run()
    progress = [message for e in desk.said if isinstance(message := e.message, Progress)]
    first = list(dict.fromkeys(sampled.exchange for message in progress for sampled in message.sampled))
    assert first == list(range(64)), "whoever came first begins first"
    begun = [index for index, message in enumerate(progress) if any(s.exchange == 63 for s in message.sampled)]
    assert begun[0] == 7, "eight of them begin with every step, whatever the others still have to say"
    assert all(desk.tokens(number) == continuation(prompt_of(5, seed=number), 30) for number in range(64))
    assert (stage.reserved, desk.batch.sessions) == (0, 0)


def test_short_prompts_go_together_and_long_ones_alone(spec):
    desk = Desk(stage := FakeStage(spec, room=100_000))
    for number, length in enumerate((20, 30, 400, 90, 600, 10)):
        desk.generate(number, prompt_of(length, seed=number), 3)
    desk.run()
    assert stage.steps[:4] == [[20, 30, 400], [1, 1, 1, 90], [1, 1, 1, 1, 128], [1, 128]]
    assert sum(map(sum, stage.steps)) == 1150 + 6 * 2
    for number, length in enumerate((20, 30, 400, 90, 600, 10)):
        assert desk.tokens(number) == continuation(prompt_of(length, seed=number), 3)


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


def cached(desk):
    return {number: count for e in desk.said if isinstance(e.message, Progress) for number, count in e.message.cached}


def test_a_prompt_that_begins_as_one_before_computes_what_is_new_and_says_so(spec):
    desk = Desk(stage := FakeStage(spec))
    common = prompt_of(600)
    desk.generate(1, [*common, 5], 3)
    desk.run()
    stage.steps.clear()
    desk.generate(2, [*common, 6, 7], 3)
    desk.generate(3, common[:512], 3)  # the last token is always computed, and so its page
    desk.run()
    assert stage.steps[0] == [90, 256]
    assert cached(desk) == {2: 512, 3: 256}
    for number, prompt in ((1, [*common, 5]), (2, [*common, 6, 7]), (3, common[:512])):
        assert desk.tokens(number) == continuation(prompt, 3)


def test_a_conversation_that_goes_on_finds_its_own_answers(spec):
    desk = Desk(FakeStage(spec))
    history = prompt_of(200)
    for turn in range(1, 5):
        desk.generate(turn, history, 200)
        desk.run()
        history = [*history, *desk.tokens(turn), *prompt_of(50, seed=turn)]
    assert cached(desk) == {2: 256, 3: 512, 4: 768}


def test_prompts_that_come_together_are_computed_once(spec):
    desk = Desk(stage := FakeStage(spec))
    for number in range(4):
        desk.generate(number, prompt_of(600), 5)
    desk.run()
    assert sum(map(sum, stage.steps)) == 600 + 3 * 88 + 4 * 4
    assert cached(desk) == {1: 512, 2: 512, 3: 512}


def test_askers_do_not_find_each_others_pages(spec):
    desk = Desk(FakeStage(spec))
    for number, asker in enumerate(["", "peer a", "peer b", "peer a"]):
        desk.ask(number, Generate(attrs.evolve(generation(prompt_of(300), 2), asker=asker), 100))
        desk.run()
    assert cached(desk) == {3: 256}


def test_a_session_that_others_drive_begins_where_an_earlier_one_of_theirs_got_to(spec):
    desk = Desk(FakeStage(spec))
    tokens = tuple(prompt_of(600))
    pages = tuple(PageNames(b"secret").of(tokens, 2))
    wishes = {
        "first": {},
        "second": {},
        "of another": {"asker": "b"},
        "of part": {"blocks": BlockRange(0, 1), "head": False, "sampling": None},
        "of another text": {"pages": (b"x", *pages[1:])},
    }
    lengths = {}
    for number, (name, wish) in enumerate(wishes.items()):
        wanted = reservation(**{"tokens": 700, "prompt_length": 600, "pages": pages, "asker": "a"} | wish)
        desk.ask(number, Reserve(SessionId(name), wanted))
        lengths[name] = desk.answers(number, Reserved)[0].length
        desk.ask(10 + number, Step(SessionId(name), lengths[name], tokens[lengths[name] :], sample=wanted.head))
        desk.run()
    assert lengths == {"first": 0, "second": 512, "of another": 0, "of part": 0, "of another text": 0}
    assert desk.answers(11, StepDone)[0].token.token == next_token(tokens) == desk.answers(10, StepDone)[0].token.token


def reservation(tokens=64, history=(), **options):
    return attrs.evolve(StageReservation(BlockRange(0, 2), True, True, tokens, 3, tuple(history), GREEDY), **options)


def test_steps_of_a_session_grow_its_cache_and_releasing_frees_it(spec):
    desk = Desk(stage := FakeStage(spec))
    session = SessionId("ring")
    desk.ask(1, Reserve(session, reservation(prompt_length=4)))
    assert desk.answers(1, Reserved)[0].length == 0
    desk.ask(2, Step(session, 0, (1, 2, 3)))
    desk.ask(3, Step(session, 3, (4,), sample=True))
    desk.run()
    assert desk.answers(2, StepDone)[0].token is None
    assert desk.answers(3, StepDone)[0].token.token == next_token([1, 2, 3, 4])
    desk.ask(4, Step(session, 2, (9,), sample=True))  # a position below the length goes back
    desk.ask(5, Step(session, 7, (9,)))
    desk.run()
    assert desk.answers(4, StepDone)[0].token.token == next_token([1, 2, 9])
    assert "gap" in desk.answers(5, Failed)[0].message
    desk.ask(6, Release(session))
    desk.ask(7, Release(session))
    assert desk.answers(6, Released)
    assert desk.answers(7, Released)
    assert stage.reserved == 0


def test_a_session_that_is_reserved_again_keeps_its_cache_if_it_can(spec):
    desk = Desk(stage := FakeStage(spec))
    session = SessionId("ring")
    desk.ask(1, Reserve(session, reservation()))
    desk.ask(2, Step(session, 0, (1, 2, 3)))
    desk.run()
    desk.ask(3, Reserve(session, reservation(tokens=40)))
    desk.ask(4, Reserve(session, reservation(tokens=80)))
    desk.ask(5, Reserve(session, reservation(tokens=80, head=False)))
    assert [desk.answers(exchange, Reserved)[0].length for exchange in (3, 4, 5)] == [3, 0, 0]
    assert stage.reserved == 80


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"blocks": BlockRange(1, 3)}, "1:3"),
        ({"tokens": 5000}, "5000 positions"),
        ({"tokens": 0}, "0 positions"),
        ({"sampling": None}, "how to sample"),
        ({"history": (VOCABULARY,)}, "token ids"),
        ({"prompt_length": -1}, "prompt of -1"),
        ({"sampling": SamplingParameters(top_k=-1)}, "top_k"),
        ({"sampling": SamplingParameters(temperature=float("nan"))}, "temperature"),
        ({"sampling": SamplingParameters(top_logprobs=-2)}, "top_logprobs"),
        ({"sampling": SamplingParameters(logit_bias=((-1, 1.0),))}, "token ids"),
        ({"sampling": SamplingParameters(frequency_penalty=float("inf"))}, "finite"),
        ({"pages": (b"name",)}, "64 positions have no 1"),
        ({"tokens": 300, "pages": (b"n" * 65,)}, "too long"),
        ({"blocks": BlockRange(0, 1)}, "not in one piece"),
        ({"blocks": BlockRange(1, 2)}, "not in one piece"),
        ({"blocks": None}, "not in one piece"),
        ({"blocks": None, "embedding": False, "head": False}, "piece: nothing"),
    ],
)
def test_a_reservation_that_cannot_be_is_refused(spec, wanted, words):
    desk = Desk(stage := FakeStage(spec))
    desk.ask(1, Reserve(SessionId("ring"), reservation(**wanted)))
    assert words in desk.answers(1, Failed)[0].message
    assert (stage.reserved, desk.batch.sessions) == (0, 0)


def test_decode_steps_of_several_sessions_run_together_and_prompts_in_turn_with_them(spec):
    desk = Desk(stage := FakeStage(spec))
    for number in range(3):
        desk.ask(number, Reserve(SessionId(f"s{number}"), reservation()))
    desk.ask(10, Step(SessionId("s0"), 0, (1, 2, 3)))
    desk.ask(11, Step(SessionId("s1"), 0, (4,), sample=True))
    desk.ask(12, Step(SessionId("s2"), 0, (5,), sample=True))
    desk.ask(13, Step(SessionId("s2"), 1, (6,), sample=True))
    desk.run()
    assert stage.steps == [[1, 1], [3], [1]]
    assert desk.answers(13, StepDone)[0].token.token == next_token([5, 6])


def test_steps_and_generations_take_turns(spec):
    desk = Desk(stage := FakeStage(spec))
    desk.ask(1, Reserve(SessionId("ring"), reservation()))
    desk.generate(2, prompt_of(3), 3)
    for position in range(3):
        desk.ask(10 + position, Step(SessionId("ring"), position, (position,)))
    desk.run()
    assert stage.steps == [[1], [3], [1], [1], [1], [1]]


def test_a_long_step_goes_in_pieces_when_others_are_there_and_is_answered_once(spec):
    desk = Desk(stage := FakeStage(spec))
    for name in ("long", "short"):
        desk.ask(1, Reserve(SessionId(name), reservation(tokens=600, prompt_length=300)))
    desk.ask(2, Step(SessionId("long"), 0, tuple(prompt_of(300)), sample=True))
    for position in range(3):
        desk.ask(10 + position, Step(SessionId("short"), position, (position,)))
    desk.run()
    assert stage.steps == [[1], [128], [1], [128], [1], [44]]
    assert [done.token.token for done in desk.answers(2, StepDone)] == [next_token(prompt_of(300))]


def test_a_long_step_alone_goes_in_wide_pieces(spec):
    desk = Desk(stage := FakeStage(spec))
    desk.ask(1, Reserve(SessionId("ring"), reservation(tokens=1000)))
    desk.ask(2, Step(SessionId("ring"), 0, tuple(prompt_of(700))))
    desk.run()
    assert stage.steps == [[512], [188]]


def test_a_generation_takes_small_pieces_while_others_drive_sessions_here(spec):
    desk = Desk(stage := FakeStage(spec))
    desk.ask(1, Reserve(SessionId("ring"), reservation()))
    desk.generate(2, prompt_of(300), 1)
    desk.run()
    assert stage.steps == [[128], [128], [44]]


def test_every_session_gets_its_turn_whatever_the_others_have_waiting(spec):
    desk = Desk(FakeStage(attrs.evolve(spec, max_batch=2)))
    for number in range(5):
        desk.ask(1, Reserve(SessionId(f"s{number}"), reservation()))
    for position in range(10):
        for number in range(5):
            desk.ask(100 * number + position, Step(SessionId(f"s{number}"), position, (7,)))
    desk.run(5)
    done = [sum(bool(desk.answers(100 * number + position, StepDone)) for position in range(10)) for number in range(5)]
    assert done == [2, 2, 2, 2, 2]


def test_steps_through_different_parts_never_share_a_forward(spec):
    desk = Desk(stage := FakeStage(spec))
    for name, end in (("a", 1), ("b", 2), ("c", 1)):
        blocks = BlockRange(0, end)
        desk.ask(1, Reserve(SessionId(name), reservation(blocks=blocks, head=False, sampling=None)))
        desk.ask(2, Step(SessionId(name), 0, (1,)))
    desk.batch.step()
    desk.batch.step()
    assert stage.steps == [[1, 1], [1]]


def test_reserving_anew_replaces_the_history_and_refuses_what_waits(spec):
    desk = Desk(stage := FakeStage(spec))
    session = SessionId("ring")
    desk.ask(1, Reserve(session, reservation(prompt_length=2)))
    desk.ask(2, Step(session, 0, (1, 2), sample=True))
    desk.run()
    desk.ask(3, Step(session, 2, (3,), sample=True))
    desk.ask(4, Reserve(session, reservation(prompt_length=2, history=(8, 9))))
    assert [failed.code for failed in desk.answers(3, Failed)] == ["session_lost"]
    assert desk.answers(4, Reserved)[0].length == 2
    desk.ask(5, Step(session, 2, (8, 9), sample=True))
    desk.run()
    assert desk.answers(5, StepDone)[0].token.token == next_token([1, 2, 8, 9])
    assert len(stage.steps) == 2


def test_the_head_refuses_to_sample_when_it_lacks_some_of_the_answer(spec):
    desk = Desk(FakeStage(spec))
    desk.ask(1, Reserve(SessionId("ring"), reservation(prompt_length=2, history=(5,))))
    desk.ask(2, Step(SessionId("ring"), 0, (1, 2, 5, 6), sample=True))
    desk.run()
    assert "does not know the answer" in desk.answers(2, Failed)[0].message
    desk.ask(3, Step(SessionId("ring"), 0, (1, 2, 5), sample=True))
    desk.run()
    assert desk.answers(3, StepDone)


def test_penalties_count_what_was_sampled_here_and_a_replay_changes_nothing(spec):
    """The likeliest token is forbidden by its own first use: the answer never repeats one."""
    forbid = SamplingParameters(temperature=0, presence_penalty=2.0)
    stage = FakeStage(spec)
    stage.favourites = [11, 12, 13, 14]
    desk = Desk(stage)
    session, answer = SessionId("ring"), []
    desk.ask(1, Reserve(session, reservation(prompt_length=1, sampling=forbid)))
    for position in range(3):
        desk.ask(position, Step(session, position, (answer or [1])[-1:], sample=True))
        desk.run()
        answer.append(desk.answers(position, StepDone)[-1].token.token)
    assert answer == [11, 12, 13]
    desk.ask(10, Reserve(session, reservation(prompt_length=1, sampling=forbid, history=tuple(answer))))
    desk.ask(11, Step(session, 0, (1, 11)))  # rows again, without sampling
    desk.ask(12, Step(session, 2, (12, 13), sample=True))
    desk.run()
    assert desk.answers(12, StepDone)[0].token.token == 14


def test_released_steps_are_refused(spec):
    desk = Desk(FakeStage(spec))
    session = SessionId("ring")
    desk.ask(1, Reserve(session, reservation()))
    desk.ask(2, Step(session, 0, (1,)))
    desk.ask(3, Release(session))
    desk.run()
    assert [failed.code for failed in desk.answers(2, Failed)] == ["session_lost"]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (Step(SessionId("unknown"), 0, (1,)), "session_lost"),
        (Step(SessionId("ring"), 0), "invalid_request"),
        (Step(SessionId("ring"), 0, (VOCABULARY,)), "invalid_request"),
        (Step(SessionId("ring"), 60, (1, 2, 3, 4, 5)), "invalid_request"),
        (Step(SessionId("ring"), 5, (1,)), "invalid_request"),
        (Step(SessionId("ring"), -1, (1,)), "invalid_request"),
    ],
)
def test_a_step_that_is_refused_changes_nothing(spec, wrong, code):
    desk = Desk(FakeStage(spec))
    desk.ask(1, Reserve(SessionId("ring"), reservation()))
    desk.ask(2, wrong)
    desk.run()
    assert [failed.code for failed in desk.answers(2, Failed)] == [code]
    desk.ask(3, Step(SessionId("ring"), 0, (1,), sample=True))
    desk.run()
    assert desk.answers(3, StepDone)
