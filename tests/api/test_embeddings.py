"""POST /v1/embeddings, as OpenAI's SDK and as plain HTTP see it; and Ollama's two paths for the same."""

import base64

import numpy as np
import openai
import pytest
from support.api import KEY, FakeRouter

from meshnode.errors import ContextOverflow
from meshnode.types.generation import Delta

VECTOR = np.array([0.6, -0.48, 0.64, 0.0], "<f4")


@pytest.fixture
def router():
    return FakeRouter(words=[Delta(vector=VECTOR.tobytes())])


@pytest.fixture
async def node(serve, router):
    async with serve(router) as node:
        yield node


@pytest.fixture
async def http(node):
    async with node.client() as client:
        yield client


async def post(http, path="/v1/embeddings", **body):
    return await http.post(path, json={"model": "tiny", **body})


async def test_the_sdk_gets_the_numbers(node):
    async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key=KEY, max_retries=0) as client:
        made = await client.embeddings.create(model="tiny", input=["one", "two"])
    assert [item.index for item in made.data] == [0, 1]
    np.testing.assert_array_equal(np.array(made.data[1].embedding, "<f4"), VECTOR)
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (14, 14)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("one", [("one", ())]),
        (["one", "two"], [("one", ()), ("two", ())]),
        ([5, 6, 7], [(None, (5, 6, 7))]),
        ([[5, 6], "one"], [(None, (5, 6)), ("one", ())]),
    ],
)
async def test_every_form_of_input_is_taken(http, router, given, prompts):
    reply = await post(http, input=given)
    assert len(reply.json()["data"]) == len(prompts)
    asked = [request for requests in router.requests for request in requests]
    assert [(request.prompt, request.prompt_tokens) for request in asked] == prompts
    assert all(request.embeds and not request.truncates for request in asked)


async def test_many_inputs_run_a_few_at_a_time_and_keep_their_order(http, router):
    reply = await post(http, input=[f"text {number}" for number in range(40)])
    assert [item["index"] for item in reply.json()["data"]] == list(range(40))
    assert [len(requests) for requests in router.requests] == [16, 16, 8]
    assert reply.json()["usage"]["prompt_tokens"] == 40 * 7


async def test_base64_is_the_same_numbers(http):
    whole = (await post(http, input="one", encoding_format="base64")).json()["data"][0]["embedding"]
    assert base64.b64decode(whole) == VECTOR.tobytes()


async def test_fewer_dimensions_are_the_first_and_of_length_one(http):
    kept = (await post(http, input="one", dimensions=2)).json()["data"][0]["embedding"]
    np.testing.assert_allclose(kept, VECTOR[:2] / np.linalg.norm(VECTOR[:2]), rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": []}, "input", "holds 0 inputs; 1 to 2048"),
        ({"input": ["x"] * 2049}, "input", "holds 2049 inputs"),
        ({"input": ""}, "input", "input 0 of 'input' is empty"),
        ({"input": ["x", 5]}, "input", "input 1 of 'input' is neither a text nor"),
        ({"input": [["x"]]}, "input", "input 0 of 'input' is neither"),
        ({"input": [5, -1]}, "input", "-1"),
        ({"input": "x", "dimensions": 5}, "dimensions", "1 to 4"),
        ({"input": "x", "dimensions": 0}, "dimensions", "1 to 4"),
        ({"input": "x", "encoding_format": "int8"}, None, "encoding_format"),
        ({"input": "x", "task": "query"}, None, "task"),
    ],
)
async def test_bad_input_is_refused_by_name(http, body, param, message):
    reply = await post(http, **body)
    error = reply.json()["error"]
    assert reply.status_code == 400, error
    assert message in error["message"]
    assert param in (None, error["param"])


async def test_what_does_not_fit_is_the_callers_error(http, router):
    router.error = ContextOverflow(
        "the prompt has 600 tokens, and the model's context has 512; shorten it", param="input"
    )
    assert (await post(http, input="long")).status_code == 400


async def test_ollama_gets_its_shapes_and_cuts_what_is_too_long(http, router):
    new = (await post(http, "/api/embed", input=["one", "two"], dimensions=4)).json()
    assert len(new["embeddings"]) == 2
    assert new["embeddings"][0] == pytest.approx(VECTOR.tolist())
    assert new["prompt_eval_count"] == 14
    assert new["total_duration"] >= new["load_duration"] >= 0
    old = (await post(http, "/api/embeddings", prompt="one")).json()
    assert old == {"embedding": pytest.approx(VECTOR.tolist())}
    assert all(request.truncates for requests in router.requests for request in requests)
    await post(http, "/api/embed", input="one", truncate=False)
    assert not router.requests[-1][0].truncates
