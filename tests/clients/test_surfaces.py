"""The same request gives the same text, calls, end and token counts through every interface, whole or streamed.

Delegated and split routes: tests/integration/test_mesh.py.
"""

import json

import pytest
from support.surfaces import ASKED, BEGINNINGS, chat, told_by_all, vectors

pytestmark = [pytest.mark.processes, pytest.mark.starter]


@pytest.fixture(scope="module")
def node(node):
    """The node, which has read both beginnings of the prompts."""
    for asked in BEGINNINGS:
        chat(node.http, asked, stream=False)
    return node


@pytest.mark.parametrize("name", ASKED)
def test_every_interface_says_the_same(node, name):
    asked = ASKED[name]
    told = told_by_all(node.http, asked)
    wanted = told["chat", "whole"]
    assert wanted.reason == {"cut": "length", "offered": "length", "called": "tool_calls"}.get(name, "stop")
    assert wanted.cached_tokens == (wanted.prompt_tokens - 1) // 256 * 256 > 0
    if asked.stop:
        assert asked.stop not in wanted.text
    if asked.is_formed:
        assert json.loads(wanted.text)["to"] in ("Paris", "Rome")
    if name == "called":
        assert wanted.calls in [(("go", {"to": city}),) for city in ("Paris", "Rome")]
    else:
        assert wanted.text
    assert told == dict.fromkeys(told, wanted)
    assert {each.cached_tokens for each in told.values()} - {None} == {wanted.cached_tokens}


def test_every_interface_makes_the_same_vectors(node):
    one, other = vectors(node.http, ["A cat.", "The sea, the sea, the open sea."])
    assert one == other
