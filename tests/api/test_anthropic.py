"""Anthropic's own SDK against the application, and what it must refuse, with the names its clients know."""

import itertools
import json

import anthropic
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.api import KEY, FakeRouter

from meshnode import errors
from meshnode.api.anthropic.reply import MessageReply
from meshnode.api.anthropic.schemas import MessagesRequest
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, ToolCall, ToolMode
from meshnode.types.generation import CallPiece, Delta, Finished, FinishReason, Started, Usage

# The SDK leaves its own async generators to the garbage collector, which Trio points out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MESSAGES = [{"role": "user", "content": "hi"}]
ASK = {"model": "tiny", "max_tokens": 100, "messages": MESSAGES}
ADD = {
    "name": "add",
    "description": "adds",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
CALLING = [
    Delta(reasoning="Adding "),
    Delta("One "),
    Delta("moment."),
    Delta(calls=(CallPiece(0, "call_1", "add", '{"a"'),)),
    Delta(calls=(CallPiece(0, "", "", ": 1}"), CallPiece(1, "call_2", "add", '{"a": 2}'))),
]


def sdk(node, kind=anthropic.AsyncAnthropic, key=KEY, **options):
    return kind(base_url=node.url, api_key=key, max_retries=0, **options)


async def test_whole_streamed_and_counted(serve):
    async with serve() as node, sdk(node) as client:
        whole = await client.messages.create(**ASK)
        assert [block.text for block in whole.content] == ["Hello, world"]
        assert (whole.stop_reason, whole.role, whole.model) == ("end_turn", "assistant", "tiny")
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (7, 3)
        async with client.messages.stream(**ASK) as stream:
            assert "".join([text async for text in stream.text_stream]) == "Hello, world"
            final = await stream.get_final_message()
        assert [block.text for block in final.content] == ["Hello, world"]
        assert final.usage.output_tokens == 3
        counted = await client.messages.count_tokens(model="tiny", messages=MESSAGES)
        assert counted.input_tokens == 7
        assert node.router.running == 0
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).display_name == "tiny"


async def test_the_key_may_be_a_bearers(serve):
    async with serve() as node:
        client = anthropic.AsyncAnthropic(base_url=node.url, auth_token=KEY, api_key=None, max_retries=0)
        assert (await client.messages.create(**ASK)).content[0].text == "Hello, world"
        await client.close()


async def test_a_loop_of_tools_with_thoughts(serve):
    async with serve(FakeRouter(words=CALLING)) as node, sdk(node) as client:
        whole = await client.messages.create(**ASK, tools=[ADD])
        assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert whole.content[0].thinking == "Adding "
        assert [block.input for block in whole.content[2:]] == [{"a": 1}, {"a": 2}]
        assert whole.stop_reason == "tool_use"
        async with client.messages.stream(**ASK, tools=[ADD]) as stream:
            final = await stream.get_final_message()
        assert [block.type for block in final.content] == [block.type for block in whole.content]
        assert [block.input for block in final.content[2:]] == [{"a": 1}, {"a": 2}]
        results = [
            {"type": "tool_result", "tool_use_id": "call_1", "content": "1"},
            {
                "type": "tool_result",
                "tool_use_id": "call_2",
                "is_error": True,
                "content": [{"type": "text", "text": "no"}],
            },
            {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}},
        ]
        await client.messages.create(
            model="tiny",
            max_tokens=9,
            tools=[ADD],
            system=[
                {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "B"},
            ],
            messages=[*MESSAGES, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}],
        )
        (asked,) = node.router.requests[-1]
        assert asked.messages == (
            ChatMessage("system", "A\n\nB"),
            ChatMessage("user", "hi"),
            ChatMessage(
                "assistant",
                "One moment.",
                calls=(ToolCall("call_1", "add", '{"a":1}'), ToolCall("call_2", "add", '{"a":2}')),
                reasoning="Adding ",
            ),
            ChatMessage("tool", "1", "add", call_id="call_1"),
            ChatMessage("tool", "Error: no", "add", call_id="call_2"),
            ChatMessage("user", "Go on."),
        )


async def test_everything_that_changes_an_answer_arrives(serve):
    async with serve() as node, sdk(node) as client:
        await client.messages.create(
            **ASK,
            extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 7},
            stop_sequences=["END"],
            tools=[ADD],
            tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True},
            thinking={"type": "disabled"},
            metadata={"user_id": "x"},
        )
        (asked,) = node.router.requests[-1]
        assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (0.5, 0.9, 7)
        assert (asked.stop, asked.max_tokens, asked.thinking, asked.as_advised) == (("END",), 100, False, False)
        assert (asked.tools.mode, asked.tools.named, asked.tools.parallel) == (ToolMode.REQUIRED, "add", False)
        await client.messages.create(**ASK)
        assert node.router.requests[-1][0].as_advised


async def test_a_form_is_asked_for_by_its_schema(serve):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    async with serve(FakeRouter(words=['{"a": 1}'])) as node, node.client() as http:
        for fields in ({"output_config": {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}},
                       {"output_format": {"type": "json_schema", "schema": schema}}):  # fmt: skip
            answer = await http.post("/v1/messages", json=ASK | fields)
            assert answer.status_code == 200
            (asked,) = node.router.requests[-1]
            assert json.loads(asked.output.schema) == schema


async def test_what_an_agent_sends_is_served(serve):
    """Claude Code's first request, as it was seen, shortened."""
    body = ASK | {
        "max_tokens": 32000,
        "stream": True,
        "system": [{"type": "text", "text": each, "cache_control": {"type": "ephemeral"}} for each in ("one", "two")],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            },
            {"role": "system", "content": "The date has changed."},
            {"role": "user", "content": "well?"},
        ],
        "tools": [
            {**ADD, "eager_input_streaming": True, "defer_loading": False},
            {"type": "web_search_20260209", "name": "web_search", "max_uses": 5},
        ],
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
        "output_config": {"effort": "high"},
        "metadata": {"user_id": "u"},
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,unknown-2099-01-01"}
    async with serve() as node, node.client(**headers) as http:
        assert (await http.head("/")).status_code in (200, 404)
        answer = await http.post("/v1/messages?beta=true", json=body)
        assert answer.status_code == 200
        assert "web_search" in answer.headers["x-meshnode-warning"]
        assert answer.headers["request-id"]
        (asked,) = node.router.requests[-1]
        assert [message.role for message in asked.messages] == ["system", "user", "system", "user"]
        assert [tool.name for tool in asked.tools.tools] == ["add"]
        assert (asked.thinking, asked.max_tokens) == (None, 32000)
        kinds = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
        assert kinds[:3] == ["message_start", "ping", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_what_is_said_of_tools_and_thoughts_is_told_or_named(serve):
    tool = {"name": "add", "description": "Add.", "input_schema": {"type": "object"}, "input_examples": [{"a": 1}]}
    body = {
        "model": "tiny",
        "max_tokens": 2000,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [tool, {**tool, "name": "hidden", "allowed_callers": ["code_execution_20260120"]}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    async with serve() as node, node.client() as http:
        answer = await http.post("/v1/messages", json=body)
        assert answer.status_code == 200
        assert "hidden" in answer.headers["x-meshnode-warning"]
        assert "budget_tokens" in answer.headers["x-meshnode-warning"]
        (asked,) = node.router.requests[-1]
        (shown,) = asked.tools.tools
        assert (shown.name, shown.description) == ("add", 'Add.\nExamples of its input: [{"a":1}]')


async def test_a_failure_in_mid_stream_is_an_error_event_and_no_natural_end(serve):
    async with serve(FakeRouter(error=errors.SessionLost("the stage is gone"), fail_after=2)) as node:
        async with sdk(node) as client, client.messages.stream(**ASK) as stream:
            with pytest.raises(anthropic.APIStatusError, match="the stage is gone"):
                async for _ in stream:
                    pass
        async with node.client() as http:
            text = (await http.post("/v1/messages", json=ASK | {"stream": True})).text
            assert text.rstrip().splitlines()[-2] == "event: error"
            assert "message_stop" not in text


async def test_silence_is_filled_with_pings(serve):
    router = FakeRouter(queue=trio.Event())
    async with serve(router, heartbeat=0.05) as node, trio.open_nursery() as nursery:

        async def release():
            await trio.sleep(0.3)
            router.queue.set()

        nursery.start_soon(release)
        async with sdk(node) as client, client.messages.stream(**ASK) as stream:
            assert await stream.get_final_text() == "Hello, world"


WRONG = {
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "fewer tokens than none": ({"max_tokens": -1}, "max_tokens"),
    "no messages": ({"messages": []}, "at least one message"),
    "no content": ({"messages": [{"role": "user", "content": []}]}, "must not be empty"),
    "another role": ({"messages": [{"role": "robot", "content": "hi"}]}, "'robot' is not"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "image blocks are not supported",
    ),
    "an unknown block": ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "hologram"),
    "an unknown field": ({"frobnicate": 1}, "frobnicate"),
    "a result of nothing": (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "1"}]}]},
        "names no tool_use",
    ),
    "an answer begun": ({"messages": [*MESSAGES, {"role": "assistant", "content": "{"}]}, "beginning of an answer"),
    "two tools of a name": ({"tools": [ADD, ADD]}, "two tools are called 'add'"),
    "a tool without a schema": ({"tools": [{"name": "x"}]}, "input_schema"),
    "a choice of nothing": ({"tool_choice": {"type": "any"}}, "there are no tools"),
    "a choice of another": ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "x"}}, "none of the tools"),
    "a choice unheard of": ({"tool_choice": {"type": "maybe"}}, "auto, any, tool or none"),
    "a form unheard of": ({"output_config": {"format": {"type": "xml"}}}, "json_schema"),
    "a thought unheard of": ({"thinking": {"type": "deep"}}, "thinking.type"),
    "servers": ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    "too hot": ({"temperature": 3}, "temperature"),
    "forty stops": ({"stop_sequences": ["x"] * 40}, "stop_sequences"),
    "a type": ({"stream": "yes"}, "stream"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_is_wrong_is_refused_by_name_in_the_shape_of_its_clients(serve, wrong):
    fields, said = WRONG[wrong]
    body = {key: value for key, value in (ASK | fields).items() if value is not None}
    async with serve() as node, node.client() as http:
        answer = await http.post("/v1/messages", json=body)
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert said in answer.json()["error"]["message"]
        assert node.router.requests == []


async def test_no_json_another_method_and_nothing_there_have_its_shape(serve):
    async with serve() as node, node.client() as http:
        broken = await http.post("/v1/messages", content=b'{"model": "t', headers={"content-type": "application/json"})
        assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
        assert (await http.get("/v1/messages")).json()["type"] == "error"
        assert (await http.post("/v1/messages/batches", json={})).json()["error"]["type"] == "not_found_error"


# The stream of events, whatever comes

DELTAS = st.lists(
    st.one_of(
        st.builds(Delta, text=st.text(min_size=1, max_size=5)),
        st.builds(Delta, reasoning=st.text(min_size=1, max_size=5)),
        st.builds(lambda text, thought: Delta(text, reasoning=thought), st.text(max_size=3), st.text(max_size=3)),
        st.builds(lambda: Delta(tokens=(1,))),
    ),
    max_size=12,
)
CALLS = st.lists(st.lists(st.text(max_size=4), min_size=1, max_size=3), max_size=3)


def events_of(stream):
    return [json.loads(line[6:]) for line in stream.decode().split("\n") if line.startswith("data: ")]


@given(DELTAS, CALLS, st.sampled_from(FinishReason), st.booleans())
async def test_blocks_begin_and_end_in_order_and_say_what_the_whole_message_says(deltas, calls, reason, hidden):
    script = [Started("tiny", 7, "local 0:2"), *deltas]
    for index, pieces in enumerate(calls):
        text = json.dumps({"text": "".join(pieces)})
        cut = len(text) // 2
        script += [
            Delta(calls=(CallPiece(index, f"c{index}", "add", text[:cut]),)),
            Delta(calls=(CallPiece(index, "", "", text[cut:]),)),
        ]
    script.append(Finished(reason, Usage(7, 3, 2)))
    streamed, whole = MessageReply("r", 3, hidden), MessageReply("r", 3, hidden)
    stream = b"".join(streamed.chunk_of(0, event) for event in script) + streamed.end()
    for event in script:
        whole.take(0, event)
    message = msgspec.json.decode(msgspec.json.encode(whole.completion()))
    events = events_of(stream)
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    blocks, open_at = [], None
    for event in events[2:-2]:
        match event["type"]:
            case "content_block_start":
                assert (open_at, event["index"]) == (None, len(blocks))
                open_at = event["index"]
                blocks.append(dict(event["content_block"]))
                arguments = ""
            case "content_block_delta":
                assert event["index"] == open_at
                delta = event["delta"]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                else:
                    field = delta["type"].removesuffix("_delta")
                    blocks[-1][field] += delta[field]
            case "content_block_stop":
                assert event["index"] == open_at
                open_at = None
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = json.loads(arguments)
            case other:
                raise AssertionError(other)
    assert open_at is None
    assert blocks == message["content"]
    assert not any(one["type"] == two["type"] != "tool_use" for one, two in itertools.pairwise(blocks))
    assert "".join(block["text"] for block in blocks if block["type"] == "text") == "".join(
        each.text for each in deltas
    )
    thoughts = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
    assert thoughts == ("" if hidden else "".join(each.reasoning for each in deltas))
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"]
    assert events[-2]["usage"] == message["usage"]
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == 7


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
        max_leaves=10,
    )
)
def test_whatever_a_body_holds_it_is_a_request_or_refused(value):
    for field in ("system", "messages", "tools", "tool_choice", "thinking", "output_config", "stop_sequences"):
        try:
            body = msgspec.convert(ASK | {field: value}, MessagesRequest)
            body.generation("client", "r")
        except (RequestError, msgspec.ValidationError):
            pass
