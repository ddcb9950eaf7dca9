"""Tokens that go round between loaded stages are those of the whole model, and what comes round is looked at first."""

import random

import pytest
from support.ring_stages import ANSWER, PROMPT, Route, stage_workers

from meshnode.engine.batching import Batch
from meshnode.engine.executor import Generation
from meshnode.engine.worker_messages import (
    BatchLimits,
    Envelope,
    Generate,
    LetTurn,
    Progress,
)
from meshnode.errors import SessionLost
from meshnode.types.generation import SamplingParameters
from meshnode.types.ids import SessionId

pytestmark = pytest.mark.processes

GREEDY = SamplingParameters(temperature=0)
SAMPLED = SamplingParameters(seed=7, temperature=0.8, top_p=0.95, frequency_penalty=0.2, top_logprobs=2)


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    with stage_workers(tmp_path_factory.mktemp("model")) as found:
        yield found


def prompt_of(seed):
    return tuple(random.Random(seed).choices(range(3, 259), k=PROMPT))


@pytest.fixture(scope="module")
def answers(workers):
    """What one process says, by prompt and sampling."""
    heard = []
    batch = Batch(workers["whole"].stage, BatchLimits(96, 32), heard.append)
    found = {}
    for seed, sampling in enumerate((GREEDY, SAMPLED)):
        heard.clear()
        batch.accept(Envelope(1, Generate(Generation(SessionId("w"), prompt_of(seed), PROMPT, ANSWER, sampling), 99)))
        while not batch.is_idle:
            batch.step()
        progress = [envelope.message for envelope in heard if isinstance(envelope.message, Progress)]
        found[sampling] = [sampled.event() for message in progress for sampled in message.sampled]
    return found


ROUTES = {
    "two": [("begin", 0, 2), ("end", 2, 4)],
    "three": [("begin", 0, 1), ("middle", 1, 3), ("end", 3, 4)],
    "first and last in one worker": [("whole", 0, 1), ("middle", 1, 2), ("whole", 2, 4)],
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_the_tokens_of_laps_are_those_of_one_process(workers, answers, route):
    stages = [(workers[name], *blocks) for name, *blocks in route]
    pair = [Route(f"s{seed}", sampling, *stages, teller=seed - 1) for seed, sampling in enumerate(answers)]
    for seed, each in enumerate(pair):
        each.join()
        each.prefill(prompt_of(seed))
        each.begin(PROMPT + 5)
    for each in pair:
        each.turn_to(PROMPT + 5)
    first = pair[0]
    for _ in range(50):  # nobody goes beyond
        for worker in first.workers:
            worker.turn()
    assert all(each.heard(PROMPT + 5) for each in pair)
    first.let_turn(PROMPT + 3)  # said late: no word makes the way shorter
    first.let_turn(PROMPT + 8)
    first.turn_to(PROMPT + 8)
    assert pair[1].heard(PROMPT + 5)
    for each in pair:
        each.let_turn(PROMPT + ANSWER - 1)
        each.turn_to(PROMPT + ANSWER - 1)
        assert each.events == answers[each.sampling]
        each.release()


def test_an_end_that_moves_on_in_time_holds_nothing_up(workers, answers):
    route = Route("m", GREEDY, (workers["begin"], 0, 2), (workers["end"], 2, 4))
    route.join()
    route.prefill(prompt_of(0))
    route.begin(PROMPT + 2)
    for until in range(PROMPT + 3, PROMPT + ANSWER):
        route.let_turn(until)
    route.turn_to(PROMPT + ANSWER - 1)
    assert route.events == answers[GREEDY]
    route.release()


def test_an_attempt_that_begins_anew_hears_nothing_of_the_laps_before(workers, answers):
    route = Route("n", SAMPLED, (workers["begin"], 0, 2), (workers["end"], 2, 4))
    route.join()
    route.prefill(prompt_of(1))
    route.begin(PROMPT + 4)
    route.turn_to(PROMPT + 4)  # the first stage holds what came round
    old = list(zip(route.places, route.exchanges, strict=True))
    before = [list(place.worker.said(exchange)) for place, exchange in old]
    for place in route.places:
        place.reserve(SAMPLED)
    route.let_turn(PROMPT + ANSWER)
    for _ in range(20):
        for worker in route.workers:
            worker.turn()
    assert not any(worker.failures(exchange) for worker, exchange in [(place.worker, each) for place, each in old])
    route.events, route.steps = [], 0
    route.join()
    route.prefill(prompt_of(1))
    route.begin(PROMPT + ANSWER - 1)
    route.turn_to(PROMPT + ANSWER - 1)
    assert route.events == answers[SAMPLED]
    assert [place.worker.said(exchange) for place, exchange in old] == before
    route.release()


def test_a_session_that_is_not_there_has_no_door(workers):
    worker = workers["end"]
    (failed,) = worker.said(worker.expect("nobody"))
    assert failed.code == SessionLost.code
    worker.ask(LetTurn(SessionId("nobody"), 5))
