"""Responses through the real OpenAI SDK: kept, continued, streamed, in the background, cancelled, forgotten."""

import time

import openai
import pydantic
import pytest
import trio
from support.api import KEY, FakeRouter

from meshnode.api.responses.archive import KEPT_FOR, StoredResponse, open_archive
from meshnode.errors import Overloaded, UnknownModel, UnknownResponse
from meshnode.store.memory import MemoryStore
from meshnode.types.generation import CallPiece, Delta

# The SDK leaves its own async generators to the garbage collector, which Trio points out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ADD = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": True}
CALLING = [Delta(reasoning="Adding."), Delta("One moment."), Delta(calls=(CallPiece(0, "call_1", "add", '{"a": 1}'),))]


def sdk(node):
    return openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key=KEY, max_retries=0)


async def settled(client, name):
    for _ in range(500):
        found = await client.responses.retrieve(name)
        if found.status not in ("queued", "in_progress"):
            return found
        await trio.sleep(0.02)
    raise AssertionError("it never ends")


async def test_an_answer_is_kept_and_gone_on_from(serve):
    async with serve() as node, sdk(node) as client:
        first = await client.responses.create(model="tiny", input="hi", instructions="Be brief.")
        assert (first.status, first.output_text, first.usage.total_tokens) == ("completed", "Hello, world", 10)
        second = await client.responses.create(model="tiny", input="again", previous_response_id=first.id)
        (request,) = node.router.requests[-1]
        assert [(message.role, message.content) for message in request.messages] == [
            ("user", "hi"),
            ("assistant", "Hello, world"),
            ("user", "again"),
        ]
        assert (await client.responses.retrieve(second.id)).output_text == "Hello, world"
        items = await client.responses.input_items.list(second.id, order="asc")
        assert [item.type for item in items.data] == ["message", "message", "message"]
        await client.responses.delete(first.id)
        assert (await client.responses.input_items.list(second.id, order="asc")).data == items.data
        await client.responses.create(model="tiny", input="more", previous_response_id=second.id)
        (request,) = node.router.requests[-1]
        assert [message.content for message in request.messages] == [
            "hi",
            "Hello, world",
            "again",
            "Hello, world",
            "more",
        ]


async def test_a_stream_has_every_event_in_order(serve):
    async with serve(FakeRouter(words=CALLING)) as node, sdk(node) as client:
        stream = await client.responses.create(model="tiny", input="hi", tools=[ADD], stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type.removeprefix("response.") for event in events] == [
            "created", "in_progress",
            "output_item.added", "content_part.added", "reasoning_text.delta",
            "reasoning_text.done", "content_part.done", "output_item.done",
            "output_item.added", "content_part.added", "output_text.delta",
            "output_text.done", "content_part.done", "output_item.done",
            "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
            "completed",
        ]  # fmt: skip
        whole = events[-1].response
        assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
        assert (await client.responses.retrieve(whole.id)).output == whole.output


async def test_a_loop_of_tools(serve):
    async with serve(FakeRouter(words=CALLING)) as node, sdk(node) as client:
        first = await client.responses.create(model="tiny", input="1+1?", tools=[ADD])
        call = first.output[-1]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
        await client.responses.create(model="tiny", input=[result], previous_response_id=first.id, tools=[ADD])
        (request,) = node.router.requests[-1]
        _, assistant, tool = request.messages
        assert (assistant.reasoning, assistant.content) == ("Adding.", "One moment.")
        assert (assistant.calls[0].id, tool.call_id, tool.name, tool.content) == ("call_1", "call_1", "add", "2")


class Person(pydantic.BaseModel):
    name: str


async def test_an_answer_is_parsed_into_a_model(serve):
    async with serve(FakeRouter(words=['{"name": "Ada"}'])) as node, sdk(node) as client:
        parsed = await client.responses.parse(model="tiny", input="who?", text_format=Person)
        assert parsed.output_parsed == Person(name="Ada")
        (request,) = node.router.requests[-1]
        assert request.output.kind == "json_schema"


async def test_an_answer_in_the_background_is_fetched_later(serve):
    async with serve(FakeRouter(pace=0.05)) as node, sdk(node) as client:
        queued = await client.responses.create(model="tiny", input="hi", background=True)
        assert queued.status == "queued"
        found = await settled(client, queued.id)
        assert (found.status, found.output_text) == ("completed", "Hello, world")


async def test_an_answer_in_the_background_is_cancelled(serve):
    async with serve(FakeRouter(pace=60)) as node, sdk(node) as client:
        queued = await client.responses.create(model="tiny", input="hi", background=True)
        with trio.fail_after(5):
            await node.router.begun.wait()
            assert (await client.responses.cancel(queued.id)).status == "cancelled"
            await node.router.ended.wait()
        assert (await client.responses.retrieve(queued.id)).status == "cancelled"


async def test_an_answer_that_is_cancelled_keeps_the_text_it_had(serve):
    words = [Delta(reasoning="Hm."), "Hello, ", "world"]
    async with serve(FakeRouter(words=words, stops_after=2)) as node, sdk(node) as client:
        queued = await client.responses.create(model="tiny", input="hi", background=True)
        with trio.fail_after(5):
            while not (await client.responses.retrieve(queued.id)).output_text:
                pass
        assert (await client.responses.cancel(queued.id)).output_text == "Hello, "
        found = await client.responses.retrieve(queued.id)
        assert (found.status, found.output_text) == ("cancelled", "Hello, ")
        assert [item.status for item in found.output] == ["completed", "incomplete"]
        again = await client.responses.create(
            model="tiny", input="and?", previous_response_id=found.id, background=True
        )
        await client.responses.cancel(again.id)


async def test_a_failure_in_the_background_is_told_when_it_is_fetched(serve):
    router = FakeRouter(error=Overloaded("too many", retry_after=1.0))
    async with serve(router) as node, sdk(node) as client:
        queued = await client.responses.create(model="tiny", input="hi", background=True)
        found = await settled(client, queued.id)
        assert (found.status, found.error.code) == ("failed", "rate_limit_exceeded")


async def test_a_failure_in_mid_stream_is_its_last_event(serve):
    router = FakeRouter(error=Overloaded("too many", retry_after=1.0), fail_after=1)
    async with serve(router) as node, sdk(node) as client:
        stream = await client.responses.create(model="tiny", input="hi", stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.failed"
        assert events[-1].response.error.message == "too many"
        found = await client.responses.retrieve(events[0].response.id)
        assert (found.status, found.output_text, found.output[0].status) == ("failed", "Hello", "incomplete")


async def test_a_stream_whose_client_leaves_is_kept_as_far_as_it_came(serve):
    async with serve(FakeRouter(stops_after=1)) as node, sdk(node) as client:
        async with await client.responses.create(model="tiny", input="hi", stream=True) as stream:
            events = []
            while not events or events[-1].type != "response.output_text.delta":
                events.append(await anext(stream))
        with trio.fail_after(5):
            await node.router.ended.wait()
        found = await client.responses.retrieve(events[0].response.id)
        assert (found.status, found.output_text) == ("cancelled", "Hello")


async def test_log_probabilities_come_with_the_words_they_are_of(serve):
    async with serve() as node, sdk(node) as client:
        include = ["message.output_text.logprobs"]
        stream = await client.responses.create(model="tiny", input="hi", stream=True, include=include)
        events = [event async for event in stream]
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert [[entry.token for entry in delta.logprobs] for delta in deltas] == [["Hello"], [", "], ["world"]]
        (done,) = (event for event in events if event.type == "response.output_text.done")
        assert [entry.token for entry in done.logprobs] == ["Hello", ", ", "world"]


async def test_items_are_named_instead_of_sent_again(serve):
    async with serve(FakeRouter(words=CALLING)) as node, sdk(node) as client:
        first = await client.responses.create(model="tiny", input="1+1?", tools=[ADD])
        asked, *_ = (await client.responses.input_items.list(first.id)).data
        names = [{"type": "item_reference", "id": item.id} for item in (asked, *first.output)]
        result = {"type": "function_call_output", "call_id": "call_1", "output": "2"}
        await client.responses.create(model="tiny", input=[*names, result], tools=[ADD], store=False)
        (request,) = node.router.requests[-1]
        question, assistant, tool = request.messages
        assert (question.content, assistant.reasoning, assistant.content) == ("1+1?", "Adding.", "One moment.")
        assert (assistant.calls[0].name, tool.content) == ("add", "2")


async def test_what_the_command_line_of_codex_sends_is_served(serve):
    said = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1+1?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One moment."}], "phase": "commentary"},
        {"type": "function_call", "name": "add", "arguments": "{}", "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "2"},
    ]  # fmt: skip
    function = ADD | {"description": "", "defer_loading": False}
    async with serve() as node, node.client() as http:
        body = {
            "model": "tiny", "instructions": "You are an agent.", "input": said, "stream": True, "store": False,
            "tools": [function, {"type": "namespace", "name": "x", "tools": [function]}, {"type": "web_search"}],
            "tool_choice": "auto", "parallel_tool_calls": True, "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "medium", "summary": "auto"}, "prompt_cache_key": "k", "client_metadata": {"a": "b"},
        }  # fmt: skip
        reply = await http.post("/v1/responses", json=body)
        assert reply.status_code == 200
        assert "response.completed" in reply.text
        assert "namespace, web_search" in reply.headers["x-meshnode-warning"]
        (request,) = node.router.requests[-1]
        roles = [message.role for message in request.messages]
        assert roles == ["system", "system", "user", "assistant", "tool"]


async def test_thoughts_of_earlier_turns_are_told_or_not(serve):
    said = [
        {"role": "user", "content": "1?"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3?"},
    ]
    async with serve() as node, node.client() as http:
        for context, told in (("all_turns", "Hm."), ("current_turn", "")):
            await http.post("/v1/responses", json={"model": "tiny", "input": said, "reasoning": {"context": context}})
            (request,) = node.router.requests[-1]
            assert [message.reasoning for message in request.messages] == ["", told, ""]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/responses?colour=red", 400),
        ("GET", "/v1/responses/resp_a?colour=red", 400),
        ("GET", "/v1/responses/resp_a?include=nonsense", 400),
        ("GET", "/v1/responses/resp_a?include[]=reasoning.encrypted_content", 404),
        ("GET", "/v1/responses/resp_a/input_items?colour=red", 400),
        ("DELETE", "/v1/responses/resp_a?colour=red", 400),
        ("POST", "/v1/responses/resp_a/cancel?colour=red", 400),
    ],
)
async def test_queries_are_not_ignored(serve, method, path, status):
    async with serve() as node, node.client() as http:
        reply = await http.request(method, path, json={"model": "tiny", "input": "hi"} if method == "POST" else None)
        assert (reply.status_code, node.router.requests) == (status, [])


async def test_forgotten_is_gone(serve):
    async with serve() as node, sdk(node) as client:
        kept = await client.responses.create(model="tiny", input="hi")
        await client.responses.delete(kept.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(kept.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="tiny", input="hi", previous_response_id=kept.id)
        unkept = await client.responses.create(model="tiny", input="hi", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(unkept.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        ({"input": [{"type": "item_reference", "id": "x", "text": "y"}]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": "x", "mood": "good"}]}, "input[0].mood"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "image_url": "y"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "mood": 1}]}]}, "input[0].content[0].mood"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True, "store": False}, "background"),
        ({"background": True, "stream": True}, "stream"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [ADD, ADD]}, "tools[1]"),
        ({"tools": [ADD | {"colour": "red"}]}, "tools[0].colour"),
        ({"tools": [ADD | {"allowed_callers": ["programmatic"]}]}, "tools[0].allowed_callers[0]"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"include": ["nonsense"]}, "include[0]"),
        ({"reasoning": {"summary": "lots"}}, "reasoning.summary"),
        ({"reasoning": {"context": "some_turns"}}, "reasoning.context"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"colour": "red"}, "colour"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(serve, fields, param):
    async with serve() as node, node.client() as http:
        reply = await http.post("/v1/responses", json={"model": "tiny", "input": "hi"} | fields)
        assert reply.status_code in (400, 404)
        assert reply.json()["error"]["param"] == param
        assert not node.router.requests


async def test_refusals_before_the_first_event_are_statuses(serve):
    async with serve(FakeRouter(error=UnknownModel("no such model"))) as node, sdk(node) as client:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(model="x", input="hi", stream=stream)


def row(created):
    return StoredResponse(created, None, (), {"id": "resp_a", "status": "in_progress", "output": []})


async def test_what_is_kept_outlives_the_process_and_expires():
    store, now = MemoryStore(), [1000.0]
    archive = await open_archive(store, lambda: now[0])
    await archive.put("resp_a", row(1000.0))
    again = await open_archive(store, lambda: now[0])
    assert again.get("resp_a").created == 1000.0
    now[0] += KEPT_FOR + 1
    await again.expire()
    with pytest.raises(UnknownResponse):
        again.get("resp_a")
    with pytest.raises(UnknownResponse):
        (await open_archive(store)).get("resp_a")


async def test_what_was_under_way_when_the_node_stopped_has_failed(serve):
    store = MemoryStore()
    await (await open_archive(store)).put("resp_a", row(time.time()))
    async with serve(responses=await open_archive(store)) as node, sdk(node) as client:
        assert (await client.responses.retrieve("resp_a")).status == "failed"
