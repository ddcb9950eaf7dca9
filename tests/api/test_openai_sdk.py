"""The real OpenAI SDK against the application."""

import openai
import pydantic
import pytest
import trio
from support.api import KEY, FakeRouter

from meshnode import errors
from meshnode.types.generation import CallPiece, Delta

# The SDK leaves its own async generators to the garbage collector, which Trio points out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MESSAGES = [{"role": "user", "content": "hi"}]


def sdk(node, kind=openai.AsyncOpenAI, key=KEY):
    return kind(base_url=f"{node.url}/v1", api_key=key, max_retries=0)


async def test_whole_and_streamed(serve):
    async with serve() as node, sdk(node) as client:
        whole = await client.chat.completions.create(model="tiny", messages=MESSAGES)
        assert whole.choices[0].message.content == "Hello, world"
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        text, usage = "", None
        async for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        assert text == "Hello, world"
        assert usage.total_tokens == 10
        assert [model.id async for model in client.models.list()] == ["tiny", "small"]
        assert (await client.models.retrieve("tiny")).id == "tiny"


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALLING = [
    Delta(reasoning="Adding "),
    Delta("One moment."),
    Delta(calls=(CallPiece(0, "call_1", "add", '{"a": 1}'), CallPiece(1, "call_2", "add", '{"a": 2}'))),
]


async def test_a_loop_of_tools(serve):
    async with serve(FakeRouter(words=CALLING)) as node, sdk(node) as client:
        whole = await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
        (choice,) = whole.choices
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.content, choice.message.reasoning_content) == ("One moment.", "Adding ")
        assert [(call.id, call.function.arguments) for call in choice.message.tool_calls] == [
            ("call_1", '{"a": 1}'),
            ("call_2", '{"a": 2}'),
        ]
        results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in choice.message.tool_calls]
        await client.chat.completions.create(
            model="tiny", messages=[*MESSAGES, choice.message, *results], tools=TOOLS, tool_choice="none"
        )
        (sent,) = node.router.requests[-1]
        assert [message.role for message in sent.messages] == ["user", "assistant", "tool", "tool"]
        assert sent.messages[1].reasoning == "Adding "
        assert [message.call_id for message in sent.messages[2:]] == ["call_1", "call_2"]


async def test_a_streamed_call_is_put_together_by_the_sdk(serve):
    async with serve(FakeRouter(words=CALLING)) as node, sdk(node) as client:
        async with client.chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        (choice,) = final.choices
        assert choice.finish_reason == "tool_calls"
        assert [call.function.arguments for call in choice.message.tool_calls] == ['{"a": 1}', '{"a": 2}']


class Person(pydantic.BaseModel):
    name: str
    age: int


async def test_an_answer_is_parsed_into_a_model(serve):
    async with serve(FakeRouter(words=['{"name": "Ada", ', '"age": 36}'])) as node, sdk(node) as client:
        parsed = await client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Person)
        assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
        (sent,) = node.router.requests[-1]
        assert sent.output.kind == "json_schema"
        assert '"age"' in sent.output.schema


async def test_plain_completions(serve):
    async with serve() as node, sdk(node) as client:
        whole = await client.completions.create(model="tiny", prompt=["a", "b"], logprobs=1)
        assert [choice.text for choice in whole.choices] == ["Hello, world"] * 2
        assert whole.choices[0].logprobs.tokens == ["Hello", ", ", "world"]
        assert whole.choices[0].logprobs.text_offset == [0, 5, 7]
        assert whole.usage.prompt_tokens == 14
        stream = await client.completions.create(
            model="tiny", prompt="a", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Hello, world"
        assert chunks[-1].usage.total_tokens == 10
        assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"


async def test_from_a_thread(serve):
    async with serve() as node:

        def ask():
            with sdk(node, openai.OpenAI) as client:
                return client.chat.completions.create(model="tiny", messages=MESSAGES).choices[0].message.content

        assert await trio.to_thread.run_sync(ask) == "Hello, world"


async def test_an_error_in_mid_stream_is_raised(serve):
    router = FakeRouter(error=errors.SessionLost("the worker is gone"), fail_after=1)
    async with serve(router) as node, sdk(node) as client:
        stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="the worker is gone"):
            async for _ in stream:
                pass
