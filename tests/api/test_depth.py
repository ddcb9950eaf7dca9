"""Schemas and calls nested without end are refused on every surface, with the tool's name, whatever reads them."""

from contextlib import asynccontextmanager

import attrs
import pytest
from support.api import FakeRouter

from meshnode.inference.assets import ModelAssets
from meshnode.text.depth import MAX_DEPTH, nesting
from meshnode.text.templates import ChatTemplate
from meshnode.text.vocabulary import build_tokenizer
from meshnode.types.tokenizer import TokenizerData

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a")
SHOWS_TOOLS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}<tool_call>{% endfor %}{% for m in messages %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)


@attrs.define(eq=False)
class Renders(FakeRouter):
    """Makes prompts as a node does, with a template that takes tools, or one that knows none."""

    source: str = SHOWS_TOOLS

    @asynccontextmanager
    async def generate(self, requests):
        data = TokenizerData("bert", "uncased", WORDS, (3, 3, 3, 3, 1), unknown_token=1, chat_template=self.source)
        tokenizer = build_tokenizer(data)
        assets = ModelAssets(tokenizer, ChatTemplate.compile(tokenizer))
        for request in requests:
            assets.prompt(request, 1 << 20)
        async with FakeRouter.generate(self, requests) as events:
            yield events


def nested(levels, kind=dict):
    value = {} if kind is dict else []
    for _ in range(levels - 1):
        value = {"items": value} if kind is dict else [value]
    return value


ASK = [{"role": "user", "content": "a"}]


def chat(schema, arguments):
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": arguments[1]}}
    said = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "1"}]
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    return "/v1/chat/completions", {"messages": [*ASK, *said], "tools": [tool]}


def responses(schema, arguments):
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": arguments[1]}
    items = [*ASK, call, {"type": "function_call_output", "call_id": "c", "output": "1"}]
    return "/v1/responses", {"input": items, "tools": [{"type": "function", "name": "add", "parameters": schema}]}


def messages(schema, arguments):
    said = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "add", "input": arguments[0]}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}]},
    ]
    tools = [{"name": "add", "input_schema": schema}]
    return "/v1/messages", {"messages": [*ASK, *said], "tools": tools, "max_tokens": 9}


def ollama(schema, arguments):
    said = [
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": arguments[0]}}]},
        {"role": "tool", "tool_name": "add", "content": "1"},
    ]
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    return "/api/chat", {"messages": [*ASK, *said], "tools": [tool], "stream": False}


def both(levels):
    return nested(levels), '{"items":' * (levels - 1) + "{}" + "}" * (levels - 1)


SHALLOW = both(2)


@pytest.mark.parametrize("surface", [chat, responses, messages, ollama])
@pytest.mark.parametrize("source", [SHOWS_TOOLS, "{% for m in messages %}{{ m.content }}{% endfor %}"])
async def test_what_is_nested_too_deeply_is_refused_by_the_tools_name(serve, surface, source):
    async with serve(Renders(source=source)) as node, node.client() as http:

        async def ask(schema, arguments):
            path, body = surface(schema, arguments)
            reply = await http.post(path, json={"model": "tiny", **body})
            return reply.status_code, reply.text

        assert (await ask(nested(MAX_DEPTH), both(MAX_DEPTH)))[0] == 200
        for levels in (MAX_DEPTH + 1, 380):
            for schema, arguments in ((nested(levels), SHALLOW), (nested(2), both(levels))):
                status, text = await ask(schema, arguments)
                assert status == 400
                assert "add" in text
                assert f"deeper than {MAX_DEPTH} levels" in text
        assert (await ask(nested(900), SHALLOW))[0] == 400


@pytest.mark.parametrize("form", [dict, list])
async def test_forms_of_answers_too(serve, form):
    deep = {"enum": [nested(300, form)]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}
    async with serve(Renders()) as node, node.client() as http:
        reply = await http.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": ASK, "response_format": form}
        )
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")


def test_the_depth_of_text_that_is_no_json_is_found_in_linear_time():
    assert nesting(b'{"a": "' + b'\\"[' * 500_000) == (1, 1)
    assert nesting(b'"' + b"[" * 500_000) == (0, 0)
    assert nesting(b'[{"a": "\\\\"}, [1]]' * MAX_DEPTH) == (3 * MAX_DEPTH, 2)
    assert nesting(b"[" * (MAX_DEPTH + 1)) == (MAX_DEPTH + 1, MAX_DEPTH + 1)
