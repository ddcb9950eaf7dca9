"""Names of models, as clients write them."""

import attrs
import pytest
from support.api import CHAT, MODEL

from meshnode.api.naming import find_model
from meshnode.errors import UnknownModel

MODELS = (
    attrs.evolve(MODEL, name="Chat-1B", id="a" * 64, aliases=("starter", "gpt-4o-mini"), loaded=False),
    attrs.evolve(MODEL, name="Chat-1B-Code", id="b" * 64, aliases=()),
    attrs.evolve(MODEL, name="Other", id="c" * 64, aliases=("Chat",)),
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a" * 64, "Chat-1B"),
        ("bbbb", "Chat-1B-Code"),
        ("Chat-1B", "Chat-1B"),
        ("gpt-4o-mini", "Chat-1B"),
        ("Chat-1B-C", "Chat-1B-Code"),
        ("Chat", "Other"),
        ("starter:latest", "Chat-1B"),
        ("Oth:latest", "Other"),
        ("auto", "Chat-1B-Code"),
    ],
)
def test_a_model_answers_to_all_its_names(name, found):
    assert find_model(MODELS, name).name == found


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Chat-", "'Chat-' is ambiguous: Chat-1B, Chat-1B-Code"),
        ("gpt-5", r"no model 'gpt-5'; there are: Chat-1B \(starter, gpt-4o-mini\), Chat-1B-Code, Other \(Chat\)"),
        ("bbb", "no model 'bbb'"),
        ("", "no model ''"),
    ],
)
def test_what_means_no_model_is_told_what_there_is(name, sentence):
    with pytest.raises(UnknownModel, match=sentence):
        find_model(MODELS, name)


def test_auto_writes_where_a_model_can():
    encoder, writer = attrs.evolve(MODEL, name="MiniLM", causal=False), attrs.evolve(MODEL, name="Chat", id="d" * 64)
    assert find_model((encoder, writer), "auto").name == "Chat"
    assert find_model((encoder, attrs.evolve(writer, loaded=False)), "auto").name == "Chat"
    assert find_model((encoder,), "auto").name == "MiniLM"


def test_a_node_without_models_says_so():
    for name in ("x", "auto"):
        with pytest.raises(UnknownModel, match="there are: none yet"):
            find_model((), name)


async def test_a_model_is_shown_under_any_name_that_a_request_may_use(serve):
    async with serve() as node, node.client() as http:
        for name in ("tiny", "small", "tin", "tiny:latest", "auto"):
            assert (await http.get(f"/v1/models/{name}")).json()["id"] == "tiny"
        refused = await http.get("/v1/models/gpt-5")
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert "there are: tiny" in refused.json()["error"]["message"]
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
