"""Messages: flattened to text, and refused by name and place where they are not text."""

import json

import msgspec
import pytest

from meshnode.api.openai.messages import Message, flatten
from meshnode.errors import RequestError
from meshnode.types.conversation import ToolCall


def read(*messages):
    return flatten(msgspec.json.decode(json.dumps(messages), type=list[Message]))


def refused(*messages):
    with pytest.raises(RequestError) as caught:
        read(*messages)
    return caught.value


def test_strings_and_parts_are_the_same():
    text, parts = read(
        {"role": "user", "content": "a\nb"},
        {"role": "user", "content": [{"type": "text", "text": "a\n"}, {"type": "text", "text": "b"}]},
    )
    assert text == parts
    assert text.content == "a\nb"


def test_roles_are_those_of_a_template_and_developer_is_system():
    roles = [
        message.role
        for message in read(
            *({"role": role, "content": "x", "name": "n"} for role in ("system", "developer", "user", "assistant"))
        )
    ]
    assert roles == ["system", "system", "user", "assistant"]


def test_an_empty_text_is_a_text():
    assert read({"role": "user", "content": ""})[0].content == ""


def test_an_answer_can_be_sent_back_as_sdks_do():
    echo = {
        "role": "assistant",
        "content": "y",
        "refusal": None,
        "tool_calls": None,
        "function_call": None,
        "audio": None,
        "annotations": [],
    }
    assert read(echo)[0].content == "y"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": "y"}}]},
            "messages[1].content[0].image_url",
        ),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[1].tool_call_id"), ({"role": "function", "name": "f", "content": "x"}, "messages[1].role"),
        ({"role": "robot", "content": "x"}, "messages[1].role"), ({"role": "user"}, "messages[1].content"), ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": []}, "messages[1].content"), ({"role": "assistant", "content": None, "tool_calls": []}, "messages[1].content"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "messages[1].refusal"), ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages[1].audio"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]}, "messages[1].content[1].type"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[1].content[0].type"), ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[1].content[0].type"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "messages[1].content[0].type"), ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
    ],
)  # fmt: skip
def test_what_is_not_text_is_refused_with_its_place(message, param):
    assert refused({"role": "user", "content": "fine"}, message).param == param


CALLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]  # fmt: skip


def test_calls_and_their_results_keep_together():
    _, assistant, tool = read(*CALLS)
    assert (assistant.content, assistant.calls) == ("", (ToolCall("c1", "weather", "{}"),))
    assert (tool.role, tool.content, tool.name, tool.call_id) == ("tool", "sunny", "weather", "c1")


def test_reasoning_can_be_sent_back():
    assert read({"role": "assistant", "content": "4", "reasoning_content": "2+2"})[0].reasoning == "2+2"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "tool_calls": CALLS[1]["tool_calls"]}, "messages[1].tool_calls"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "reasoning_content": "y"}, "messages[1].reasoning_content"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "function": {"name": "x"}}]}, "messages[1].tool_calls[0].type"),
    ],
)  # fmt: skip
def test_calls_and_results_are_refused_where_they_belong_to_nobody(message, param):
    assert refused(CALLS[0], message).param == param


def test_no_messages_are_refused():
    assert refused().param == "messages"
