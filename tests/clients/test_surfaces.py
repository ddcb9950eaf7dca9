"""The same request gives the same text, end and token counts through every interface, whole or streamed.

Delegated and split routes: tests/integration/test_mesh.py.
"""

import json

import pytest
from support.surfaces import ASKED, chat, surfaces_for, vectors

pytestmark = [pytest.mark.processes, pytest.mark.starter]


@pytest.mark.parametrize("name", ASKED)
def test_every_interface_says_the_same(node, name):
    asked = ASKED[name]
    wanted = chat(node.http, asked, stream=False)
    assert wanted.text
    assert wanted.is_cut == (name == "cut")
    if asked.stop:
        assert asked.stop not in wanted.text
    if asked.schema:
        assert json.loads(wanted.text)["city"] in ("Paris", "Rome")
    for surface in surfaces_for(asked):
        for stream in (False, True):
            assert surface(node.http, asked, stream=stream) == wanted, (surface.__name__, stream)


def test_every_interface_makes_the_same_vectors(node):
    one, other = vectors(node.http, ["A cat.", "The sea, the sea, the open sea."])
    assert one == other
