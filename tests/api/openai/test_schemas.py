"""What a chat request may ask for, and how the rest is refused: by name."""

import json

import msgspec
import pytest

from meshnode.api.openai.schemas import ChatRequest
from meshnode.errors import RequestError


def read(**fields):
    raw = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | fields
    return msgspec.json.decode(json.dumps(raw), type=ChatRequest).generations("me", "id")


def refused(**fields):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param is not None
    return caught.value


UNSUPPORTED = {
    "audio": {"voice": "x", "format": "wav"}, "function_call": "auto", "functions": [{"name": "f"}], "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"}, "service_tier": "flex", "store": True, "verbosity": "low", "web_search_options": {},
}  # fmt: skip
HARMLESS = {
    "function_call": ["none"], "functions": [[]], "modalities": [["text"]], "service_tier": ["auto", "default"], "store": [False],
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_done_is_refused_by_name(name):
    error = refused(**{name: UNSUPPORTED[name]})
    assert error.param == name
    assert f"'{name}'" in str(error)
    assert "not supported" in str(error)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_asking_for_nothing_is_fine(name):
    for value in (None, *HARMLESS.get(name, ())):
        assert read(**{name: value})


@pytest.mark.parametrize(
    "almost",
    [
        {"response_format": {"type": "text", "schema": {}}},
        {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
        {"modalities": ["text", "text"]},
        {"functions": {}},
    ],
)
def test_what_is_nearly_harmless_is_refused_too(almost):
    assert refused(**almost).param == next(iter(almost))


def test_labels_and_hints_change_nothing():
    labels = {
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
    }
    assert read(**labels, seed=1) == read(seed=1)


def test_options_of_a_stream_go_with_a_stream():
    assert refused(stream_options={"include_usage": True}).param == "stream_options"
    assert read(stream=True, stream_options={"include_usage": True})
    assert read(stream_options=None)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("temperature", [0, 0.7, 2], [-0.1, 2.1]), ("top_p", [0.001, 1], [0, -1, 1.1]), ("top_k", [0, 1, 2**31 - 1], [-1, 2**31]), ("min_p", [0, 1], [-0.1, 1.1]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]), ("frequency_penalty", [-2, 2], [-2.1, 2.1]), ("max_tokens", [1, 2**31 - 1], [0, -1, 2**31]),
        ("max_completion_tokens", [1], [0, -1]), ("n", [1, 8], [0, 9, -1]), ("seed", [-(2**63), 0, 2**63 - 1], [-(2**63) - 1, 2**63]),
    ],
)  # fmt: skip
def test_numbers_have_bounds_that_are_named(name, good, bad):
    for value in good:
        assert read(**{name: value})
    for value in bad:
        error = refused(**{name: value})
        assert error.param == name
        assert str(value) in str(error)


def test_stops_are_one_or_a_list_within_bounds():
    assert read(stop="a")[0].stop == ("a",)
    assert read(stop=["a"] * 16)[0].stop == ("a",) * 16
    assert read(stop=None)[0].stop == read(stop=[])[0].stop == ()
    for bad in (["a"] * 17, ["a"] * 40, "", [""], "a" * 257, ["a", "b" * 257]):
        assert refused(stop=bad).param == "stop"


def test_biases_are_for_token_ids():
    assert read(logit_bias={"5": -100, "7": 100})[0].sampling.logit_bias == ((5, -100), (7, 100))
    assert read(logit_bias={"5": 1, "05": 2})[0].sampling.logit_bias == ((5, 2),), "one token has one bias"
    for bad in (
        {"x": 1},
        {"-1": 1},
        {"٣": 1},
        {"9" * 30: 1},
        {str(2**31): 1},
        {"": 1},
        {"1": 101},
        {"1": -101},
        {str(i): 0 for i in range(1025)},
    ):
        assert refused(logit_bias=bad).param == "logit_bias"


def test_logprobs_come_with_their_count_or_without():
    assert read()[0].sampling.top_logprobs is None
    assert read(logprobs=False)[0].sampling.top_logprobs is None
    assert read(logprobs=True)[0].sampling.top_logprobs == 0
    assert read(logprobs=True, top_logprobs=20)[0].sampling.top_logprobs == 20
    for bad in ({"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 1}, {"logprobs": True, "top_logprobs": 21}):
        assert refused(**bad).param == "top_logprobs"


def test_either_limit_of_tokens_counts_and_both_are_refused():
    assert read()[0].max_tokens is None
    assert read(max_tokens=5)[0].max_tokens == read(max_completion_tokens=5)[0].max_tokens == 5
    assert refused(max_tokens=5, max_completion_tokens=5).param == "max_tokens"


def test_choices_have_ids_and_seeds_of_their_own():
    eight = read(n=8, seed=7)
    assert [request.id for request in eight] == ["id", *(f"id-{index}" for index in range(1, 8))]
    seeds = [request.sampling.seed for request in eight]
    assert seeds[0] == 7
    assert len({*seeds, *(request.sampling.seed for request in read(n=8, seed=8))}) == 16
    assert all(-(2**63) <= seed < 2**63 for seed in seeds), "the worker's frames carry signed 64-bit numbers"
    assert seeds == [request.sampling.seed for request in read(n=8, seed=7)], "the same request has the same answers"


def test_without_a_seed_every_request_has_another():
    assert len({read()[0].sampling.seed for _ in range(20)}) == 20


def test_defaults_are_openais():
    (request,) = read()
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (0, 0, ())
    assert (request.model, request.client, request.prompt) == ("tiny", "me", None)


def test_a_request_that_says_nothing_of_sampling_takes_the_models_advice():
    assert read(seed=5, presence_penalty=1, max_tokens=9)[0].as_advised


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p"])
def test_a_request_that_says_anything_of_it_is_taken_at_its_word(name):
    (request,) = read(**{name: 1})
    assert not request.as_advised
    assert request.sampling.temperature == 1
