"""Stop sequences are found wherever the stream was cut."""

from hypothesis import given
from hypothesis import strategies as st

from meshnode.text.stop_sequences import StopMatcher

WORDS = st.text(alphabet="ab", max_size=12)


def run(stops, pieces):
    matcher, shown = StopMatcher(stops), ""
    for piece in pieces:
        text, found = matcher.push(piece)
        shown += text
        if found is not None:
            return shown, found
    return shown + matcher.flush(), None


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4), st.lists(WORDS, max_size=8))
def test_the_cut_does_not_matter(stops, pieces):
    assert run(stops, pieces) == run(stops, list("".join(pieces)))


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=4), WORDS)
def test_what_is_shown_holds_no_stop_sequence(stops, text):
    shown, found = run(stops, list(text))
    assert all(stop not in shown for stop in stops)
    assert text.startswith(shown + (found or ""))
    if found is None:
        assert shown == text


def test_only_what_may_become_a_stop_is_held():
    matcher = StopMatcher(["STOP"])
    assert matcher.push("go ST") == ("go ", None)
    assert matcher.push("ART STO") == ("START ", None)
    assert matcher.push("P now") == ("", "STOP")
    assert StopMatcher([]).push("anything") == ("anything", None)
