"""Anthropic's own SDK against a real node."""

from typing import Literal

import anthropic
import httpx
import pydantic
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.starter]

HI = [{"role": "user", "content": "What is the capital of France?"}]
ONE = {"type": "any", "disable_parallel_tool_use": True}


@pytest.fixture
def client(node, key):
    with anthropic.Anthropic(base_url=node.url, api_key=key, max_retries=0) as client:
        yield client


def test_whole_streamed_and_counted_are_the_same(client):
    counted = client.messages.count_tokens(model="starter", messages=HI)
    cold = {"temperature": 0}
    whole = client.messages.create(model="starter", max_tokens=4, messages=HI, extra_body=cold)
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == counted.input_tokens
    assert whole.usage.output_tokens <= 4
    with client.messages.stream(model="starter", max_tokens=4, messages=HI, extra_body=cold) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        assert stream.get_final_message().stop_reason == whole.stop_reason


async def test_the_client_for_async_code_streams_and_its_runner_calls_tools(node, key):
    called = []

    @anthropic.beta_async_tool
    async def go(to: Literal["Paris", "Rome"]) -> str:
        """Go to a city."""
        called.append(to)
        return "There you are."

    async with anthropic.AsyncAnthropic(base_url=node.url, api_key=key, max_retries=0) as client:
        async with client.messages.stream(model="starter", max_tokens=2, messages=HI) as stream:
            assert "".join([text async for text in stream.text_stream])
            assert (await stream.get_final_message()).stop_reason == "max_tokens"
        runner = client.beta.messages.tool_runner(
            model="starter", max_tokens=60, messages=HI, tools=[go], tool_choice=ONE, max_iterations=2
        )
        said = []
        async for message in runner:
            said.append(message)
            # what follows the call is an answer in words
            runner.set_messages_params(lambda params: params | {"tool_choice": {"type": "none"}, "max_tokens": 2})
    (call,) = said[0].content
    assert (said[0].stop_reason, call.name, [call.input]) == ("tool_use", "go", [{"to": city} for city in called])
    assert (said[1].stop_reason, len(called)) == ("max_tokens", 1)
    assert said[1].content[0].text


def test_two_hundred_tools_are_counted(client):
    tools = [{"name": f"tool_{number}", "input_schema": {"type": "object"}} for number in range(200)]
    counts = [
        client.messages.count_tokens(model="starter", messages=HI, tools=some).input_tokens
        for some in (tools[:100], tools)
    ]
    assert counts[1] - counts[0] > 100 * 10


def test_a_model_that_is_not_there_and_a_prompt_that_is_too_long(client):
    with pytest.raises(anthropic.NotFoundError, match="smollm2-135m-instruct"):
        client.messages.create(model="claude", max_tokens=8, messages=HI)
    long = [{"role": "user", "content": "word " * 9000}]
    assert client.messages.count_tokens(model="starter", messages=long).input_tokens > 9000
    with pytest.raises(anthropic.BadRequestError, match="8192"):
        client.messages.create(model="starter", max_tokens=8, messages=long)


STORY = "The keeper of the lighthouse counted the ships that went by, and wrote each of them into a book. " * 12


def test_a_prompt_that_was_read_before_comes_from_the_cache(client):
    asked = {"model": "starter", "system": [{"type": "text", "text": STORY, "cache_control": {"type": "ephemeral"}}]}
    read = client.messages.create(**asked, max_tokens=0, messages=[{"role": "user", "content": "Hi"}])
    assert (read.content, read.stop_reason, read.usage.output_tokens) == ([], "max_tokens", 0)
    assert (read.usage.cache_read_input_tokens, read.usage.input_tokens > 256) == (0, True)
    how_many = [{"role": "user", "content": "How many ships were there?"}]
    with client.messages.stream(**asked, max_tokens=2, messages=how_many) as stream:
        usage = stream.get_final_message().usage
    assert usage.cache_read_input_tokens == 256
    assert 0 < usage.input_tokens < 256


def test_a_stop_sequence_is_named_and_more_tokens_than_there_is_room_for_are_no_error(client):
    count = [{"role": "user", "content": "Count: 1, 2, 3, 4"}]
    said = client.messages.create(
        model="starter", max_tokens=100_000, messages=count, stop_sequences=[" ", ","], timeout=60
    )
    assert said.stop_reason == "stop_sequence"
    assert said.stop_sequence in (" ", ",")


class City(pydantic.BaseModel):
    name: Literal["Paris", "Rome"]


def test_an_answer_is_a_model_of_the_users(client):
    asked = {"model": "starter", "max_tokens": 40, "messages": HI, "output_format": City}
    assert isinstance(client.messages.parse(**asked).parsed_output, City)
    with client.beta.messages.stream(**asked) as stream:
        assert isinstance(stream.get_final_message().parsed_output, City)


def test_the_list_has_what_a_client_wants_to_know_of_a_model(client):
    (model,) = [model for model in client.models.list(limit=1) if "smollm2" in model.id]
    assert (model.max_input_tokens, model.lifecycle) == (8192, "active")
    assert client.beta.models.retrieve("starter").id == model.id


def test_what_an_agent_asks_first_is_answered(node):
    assert httpx.head(f"{node.url}/", trust_env=False).status_code < 500
