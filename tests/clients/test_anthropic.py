"""Anthropic's own SDK against a real node."""

import anthropic
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.starter]

HI = [{"role": "user", "content": "What is the capital of France?"}]
ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}

ONE = {"type": "any", "disable_parallel_tool_use": True}


@pytest.fixture
def client(node, key):
    with anthropic.Anthropic(base_url=node.url, api_key=key, max_retries=0) as client:
        yield client


def test_streams_tools_counts_and_the_cache(client):
    counted = client.messages.count_tokens(model="starter", messages=HI)
    cold = {"temperature": 0}
    whole = client.messages.create(model="starter", max_tokens=8, messages=HI, extra_body=cold)
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == counted.input_tokens
    assert whole.usage.output_tokens <= 8
    with client.messages.stream(model="starter", max_tokens=8, messages=HI, extra_body=cold) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().stop_reason == whole.stop_reason
    asked = [{"role": "user", "content": "Add 2 and 3."}]
    called = client.messages.create(
        model="starter", max_tokens=160, messages=asked, tools=[ADD], tool_choice=ONE, extra_body=cold
    )
    call = called.content[-1]
    assert (called.stop_reason, call.name) == ("tool_use", "add")
    assert call.input["a"] in (1, 2)
    assert call.input["b"] in (3, 4)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "5"}
    turns = [*asked, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    said = client.messages.create(model="starter", max_tokens=8, messages=turns, tools=[ADD])
    assert said.content


def test_a_model_that_is_not_there_and_a_prompt_that_is_too_long(client):
    with pytest.raises(anthropic.NotFoundError, match="smollm2-135m-instruct"):
        client.messages.create(model="claude", max_tokens=8, messages=HI)
    long = [{"role": "user", "content": "word " * 9000}]
    assert client.messages.count_tokens(model="starter", messages=long).input_tokens > 9000
    with pytest.raises(anthropic.BadRequestError, match="8192"):
        client.messages.create(model="starter", max_tokens=8, messages=long)
