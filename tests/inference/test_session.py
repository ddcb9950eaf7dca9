"""One generation over an executor that may die on the way, in virtual time."""

from contextlib import asynccontextmanager

import pytest

from meshnode.errors import WorkerLost
from meshnode.inference.session import Session
from meshnode.types.generation import SamplingParameters, TokenEvent


class DiesAfter:
    """Gives the tokens and then, instead of ending, loses its worker."""

    incarnation = 1

    def __init__(self, tokens):
        self.tokens, self.attempts = tokens, 0

    async def ready(self):
        pass

    @asynccontextmanager
    async def generate(self, request):
        self.attempts += 1

        async def events():
            for token in self.tokens:
                yield TokenEvent(token)
            raise WorkerLost("the worker process ended")

        yield events()


@pytest.mark.parametrize(("tokens", "limit"), [([5, 6, 7], 3), ([5, 2], 10)])
async def test_an_answer_that_had_come_to_its_end_is_not_asked_for_again(autojump_clock, tokens, limit):
    executor, taken = DiesAfter(tokens), []

    async def take(event):
        taken.append(event.token)
        return True

    session = Session((1,), limit, SamplingParameters(), frozenset({2}))
    await session.run(executor, take)
    assert (taken, executor.attempts, session.recoveries) == (tokens, 1, 0)
