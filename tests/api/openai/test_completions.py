"""Plain completions: every shape of a prompt, and what is refused by name."""

import json

import msgspec
import pytest

from meshnode.api.openai.completions import CompletionRequest
from meshnode.errors import RequestError


def read(**fields):
    raw = json.dumps({"model": "tiny", "prompt": "Once"} | fields)
    return msgspec.json.decode(raw, type=CompletionRequest).generations("me", "id")


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("Once", [("Once", ())]),
        ("", [("", ())]),
        (["a", "b"], [("a", ()), ("b", ())]),
        ([1, 2, 3], [(None, (1, 2, 3))]),
        ([[1, 2], [3]], [(None, (1, 2)), (None, (3,))]),
    ],
)
def test_a_prompt_is_text_or_tokens_or_several_of_them(prompt, found):
    assert [(request.prompt, request.prompt_tokens) for request in read(prompt=prompt)] == found


def test_choices_of_a_prompt_stand_together_and_have_seeds_of_their_own():
    requests = read(prompt=["a", "b"], n=2, seed=3)
    assert [request.prompt for request in requests] == ["a", "a", "b", "b"]
    assert requests[0].sampling.seed == requests[2].sampling.seed == 3 != requests[1].sampling.seed
    assert len({request.id for request in requests}) == 4


def test_defaults_are_openais():
    (request,) = read()
    assert (request.max_tokens, request.echo, request.messages) == (16, False, ())
    assert request.sampling.top_logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 50}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields, param):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param == param
