"""Reasoning is told from the answer wherever the text is cut."""

import pytest

from meshnode.text.reasoning import ReasoningSplitter, may_think

CASES = [
    ("<think>\nHm, 2+2.\n</think>\n\nIt is 4. ", False, "Hm, 2+2.", "It is 4. "),
    ("Hm, 2 < 3.\n</think>\n\nIt is 4.", True, "Hm, 2 < 3.", "It is 4."),
    ("<think>\n\n</think>\n\nYes", False, "", "Yes"),
    ("  \n<think>a</think>b", False, "a", "b"),
    ("<think>cut o", False, "cut o", ""),
    ("No thought at all </think>", False, "", "No thought at all </think>"),
    ("  plain", False, "", "  plain"),
    ("<thin", False, "", "<thin"),
    ("<thing> x", False, "", "<thing> x"),
    ("", True, "", ""),
    ("a </think", True, "a </think", ""),
    ("<think>one</think>two<think>three</think>", False, "one", "two<think>three</think>"),
]


def split(pieces, *, is_thinking):
    splitter = ReasoningSplitter(is_thinking)
    found = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(each.reasoning for each in found), "".join(each.text for each in found)


@pytest.mark.parametrize(("text", "is_thinking", "reasoning", "answer"), CASES)
def test_it_is_told_apart_wherever_the_text_is_cut(text, is_thinking, reasoning, answer):
    for at in range(len(text) + 1):
        assert split([text[:at], text[at:]], is_thinking=is_thinking) == (reasoning, answer), at
    assert split(list(text), is_thinking=is_thinking) == (reasoning, answer)


def test_a_template_says_whether_its_model_thinks():
    assert may_think("{{ content.split('</think>')[-1] }}")
    assert not may_think("{{ content }}")
