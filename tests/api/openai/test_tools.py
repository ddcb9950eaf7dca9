"""Tools, the choice among them, and the form of an answer: what OpenAI's clients write, and what is refused by name."""

import json

import msgspec
import pytest

from meshnode.api.openai.schemas import ChatRequest
from meshnode.errors import RequestError
from meshnode.types.conversation import OutputFormat, Tool, ToolMode, ToolUse

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Look.", "parameters": SCHEMA}}
ADD = {"type": "function", "function": {"name": "add", "strict": True}}
TOOLS = (
    Tool("weather", "Look.", '{"type":"object","properties":{"city":{"type":"string"}}}'),
    Tool("add", "", '{"type":"object","properties":{}}', strict=True),
)


def read(**fields):
    raw = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | fields
    return msgspec.json.decode(json.dumps(raw), type=ChatRequest).generations("me", "id")[0]


def refused(**fields):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, ToolUse(TOOLS)),
        ({"tool_choice": "auto"}, ToolUse(TOOLS)),
        ({"tool_choice": "none"}, ToolUse(TOOLS, ToolMode.NONE)),
        ({"tool_choice": "required"}, ToolUse(TOOLS, ToolMode.REQUIRED)),
        (
            {"tool_choice": {"type": "function", "function": {"name": "add"}}},
            ToolUse(TOOLS, ToolMode.REQUIRED, "add"),
        ),
        ({"parallel_tool_calls": False}, ToolUse(TOOLS, parallel=False)),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ADD]}}},
            ToolUse(TOOLS[1:], ToolMode.REQUIRED),
        ),
    ],
)
def test_tools_and_the_choice_among_them(fields, use):
    assert read(tools=[WEATHER, ADD], **fields).tools == use


def test_two_hundred_tools_are_fine():
    tools = [{"type": "function", "function": {"name": f"tool_{index}"}} for index in range(200)]
    assert len(read(tools=tools).tools.tools) == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"function": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "x", "colour": "red"}}]}, "tools[0].function.colour"),
        ({"tools": [WEATHER, {"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1]"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(513)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ADD]}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(fields, param):
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (None, OutputFormat()),
        ({"type": "text"}, OutputFormat()),
        ({"type": "json_object"}, OutputFormat("json_object")),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "integer"}}},
            OutputFormat("json_schema", '{"type":"integer"}'),
        ),
    ],
)
def test_the_form_of_an_answer(given, form):
    assert read(response_format=given).output == form


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"thinking": True}, "reasoning_effort": "none"}, True),
    ],
)
def test_whether_to_think(fields, thinking):
    assert read(**fields).thinking is thinking
