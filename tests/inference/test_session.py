"""What a session knows of itself."""

import pytest
import trio

from meshnode.inference.session import Session
from meshnode.types.generation import SamplingParameters


def session(limit=3):
    return Session((7, 8, 9), limit, SamplingParameters(), frozenset({2}))


@pytest.mark.parametrize(("tokens", "complete"), [([], False), ([5, 6], False), ([5, 6, 7], True), ([5, 2], True)])
def test_it_is_complete_with_an_end_token_or_enough_tokens(tokens, complete):
    one = session()
    one.generated += tokens
    assert one.is_complete is complete


def test_positions_count_prompt_and_answer():
    one = session()
    one.generated += [5, 6]
    assert (one.length, one.capacity) == (5, 6)
    assert [one.tokens(0, 5), one.tokens(2, 4), one.tokens(3, 5), one.tokens(4, 5)] == [
        (7, 8, 9, 5, 6), (9, 5), (5, 6), (6,)
    ]  # fmt: skip


async def test_the_pause_is_from_the_last_token_to_the_next(autojump_clock):
    one = session()
    one.token_came(5)
    await trio.sleep(1)
    one.lost()
    await trio.sleep(2)
    one.lost()
    await trio.sleep(0.5)
    assert one.losses_in_a_row == 2
    one.token_came(6)
    await trio.sleep(9)
    one.token_came(7)
    assert (one.recoveries, one.pause, one.losses_in_a_row) == (2, 3.5, 0)
