"""Calls are found in every format, whatever pieces the text comes in, and what is no call stays text."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.text.tool_calls.base import CallText
from meshnode.text.tool_calls.deepseek import DEEPSEEK, DEEPSEEK_PLAIN
from meshnode.text.tool_calls.detection import tool_format
from meshnode.text.tool_calls.hermes import HERMES
from meshnode.text.tool_calls.llama import LLAMA
from meshnode.text.tool_calls.mistral import MISTRAL, MISTRAL_NAMED
from meshnode.text.tool_calls.scanner import ToolScanner

FORMATS = {made.name: made for made in (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, DEEPSEEK, DEEPSEEK_PLAIN)}
NAMES = ("weather", "add")
CALLS = (
    CallText("weather", '{"city": "Zürich", "note": "a \\"quoted\\" {brace} ]"}'),
    CallText("add", '{"a": 1.5, "b": [1, {"c": null}]}'),
)


def written(made, calls, before=""):
    spelling = made.spelling
    inner = spelling.between.join(spelling.written(call) for call in calls)
    return before + spelling.before + inner + spelling.after


def scan(made, pieces, names=NAMES):
    scanner = ToolScanner(made, names)
    found = [*map(scanner.push, pieces), scanner.flush()]
    return "".join(each.text for each in found), tuple(call for each in found for call in each.calls)


def alike(calls):
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("count", [1, 2])
def test_calls_are_found_wherever_the_text_is_cut(made, count):
    text = written(made, CALLS[:count])
    for at in range(len(text) + 1):
        shown, calls = scan(made, [text[:at], text[at:]])
        assert (shown, alike(calls)) == ("", alike(CALLS[:count])), at
    assert alike(scan(made, list(text))[1]) == alike(CALLS[:count])


@pytest.mark.parametrize(
    "made", [FORMATS[name] for name in FORMATS if name != "llama"], ids=[name for name in FORMATS if name != "llama"]
)
def test_text_before_calls_is_shown_without_the_space_between(made):
    text = written(made, CALLS, before="Let me look. \n")
    for at in range(len(text) + 1):
        shown, calls = scan(made, [text[:at], text[at:]])
        assert (shown, len(calls)) == ("Let me look.", 2), at


@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_a_call_that_is_cut_off_is_text(made):
    text = written(made, CALLS[:1])
    for at in range(1, len(text) - len(made.spelling.tail + made.spelling.after) - 1):
        assert scan(made, [text[:at]]) == (text[:at], ()), at


@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_a_call_of_a_tool_that_is_not_there_is_text(made):
    text = written(made, CALLS[:1])
    assert scan(made, [text], names=("other",)) == (text, ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello, world! \n",
        "  \n",
        "a < b and <tool is no <tool_callx",
        "<tool_call>no json</tool_call> ",
        "x \n<tool_call>[]</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "weather", "arguments": 5}</tool_call>',
        "<tool_call><tool_call>",
        '{"city": "x"}',
        '{"name": 5}',
        '[1, 2, "{"]',
        "{",
        '{"weather": {"name": "weather", "parameters": {}}}',
        "[TOOL_CALLS]",
        "[TOOL_CALLS] nothing of that kind " + "x" * 300,
        "[TOOL_CALLS] [1]",
        "[TOOL_CALLS]we!ther{}",
        "<|python_tag|>print(1)",
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>",
        '{"a":' * 50,
    ],
)
@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_what_is_no_call_is_text_to_the_letter(made, text):
    assert scan(made, [text]) == (text, ())
    assert scan(made, list(text)) == (text, ())


PIECES = st.lists(
    st.sampled_from(
        [
            *(written(made, CALLS[:1]) for made in FORMATS.values()),
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "{", "}", '{"name": ', '"weather"', ', "arguments": {}}', "\n", " ", "text", ";", "[", "]", '"',
            "<|python_tag|>",
        ]
    ),
    max_size=8,
)  # fmt: skip


@given(pieces=PIECES, data=st.data())
@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_the_pieces_it_comes_in_make_no_difference(made, pieces, data):
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    ends = [0, *cuts, len(text)]
    assert scan(made, [text[a:b] for a, b in itertools.pairwise(ends)]) == scan(made, [text])


def test_a_call_inside_a_failed_one_is_found():
    text = "<tool_call>oops " + written(HERMES, CALLS[1:])
    assert scan(HERMES, [text]) == ("<tool_call>oops", CALLS[1:])


def test_text_after_calls_is_shown_and_white_space_alone_is_not():
    text = written(HERMES, CALLS[:1])
    assert scan(HERMES, [text + "\n\n"]) == ("", CALLS[:1])
    assert scan(HERMES, [text + "\nDone. "]) == ("\nDone.", CALLS[:1])


@pytest.mark.parametrize(
    ("inner", "arguments"),
    [
        ('{"name": "add", "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"function": {"name": "add", "arguments": {"a": 1}}, "type": "function"}', '{"a": 1}'),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "add"}', "{}"),
        ('{"name": "add", "arguments": null}', "{}"),
        ('```json\n{"name": "add", "arguments": {"a": 1}}\n```', '{"a": 1}'),
    ],
)
def test_the_ways_in_which_models_write_an_object_are_understood(inner, arguments):
    assert scan(HERMES, [f"<tool_call>{inner}</tool_call>"])[1] == (CallText("add", arguments),)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("[TOOL_CALLS] [", "mistral"),
        ("[TOOL_CALLS] [ARGS]", "mistral-named"),
        ("<|python_tag|>", "llama"),
        ("'<\uff5ctool\u2581call\u2581begin\uff5c>' ```json", "deepseek"),
        ("'<\uff5ctool\u2581call\u2581begin\uff5c>'", "deepseek-plain"),
    ],
)
def test_a_template_shows_its_format(template, name):
    assert tool_format(template) is FORMATS[name]
    assert tool_format("{{ messages }}") is None
