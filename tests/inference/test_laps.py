"""How far a ring turns by itself, as its coordinator sees it."""

from hypothesis import given
from hypothesis import strategies as st

from meshnode.inference.laps import Laps

WINDOW = 64


def whole(stages, most):
    laps = Laps(stages, most)
    for index in range(stages):
        laps.joined(index)
    return laps


@given(st.integers(2, 8), st.integers(0, 50), st.integers(0, 400))
def test_a_ring_turns_to_the_end_and_never_further_than_the_window(stages, begin, tokens):
    """Moved on at each token, it is neither beyond what is needed, nor too far ahead, nor at a stand before the end."""
    most = begin + tokens
    laps = whole(stages, most)
    allowed = laps.begin(begin)
    if tokens < 2:
        assert allowed == 0, "one row is no lap"
        return
    turns = 0
    for position in range(begin, most):
        if position > begin:
            more = laps.move_on(position)
            allowed += more
            turns += bool(more)
        assert allowed == laps.until
        assert position < allowed <= min(most, position + WINDOW)
        assert allowed == most or allowed - position > WINDOW // 2 - 1
    assert allowed == most
    assert turns <= 1 + tokens // (WINDOW // 2), "many at a time"


@given(st.integers(2, 8), st.lists(st.integers(0, 7), max_size=20))
def test_a_ring_is_whole_when_each_has_joined_however_often_some_say_so(stages, said):
    laps = Laps(stages, 100)
    for index in said:
        laps.joined(index % stages)
    assert laps.is_whole == ({index % stages for index in said} == set(range(stages)))
    assert bool(laps.begin(10)) == laps.is_whole
