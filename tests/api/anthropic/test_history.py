"""Conversations that cannot have been are refused by their place; those that clients send are taken."""

import msgspec
import pytest

from meshnode.api.anthropic.conversation import flatten
from meshnode.api.anthropic.schemas import MessagesRequest
from meshnode.api.anthropic.wrong import wrong_value
from meshnode.api.bodies import decode_json
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, ToolCall

HI = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "yes?"}


def system(text="Be brief."):
    return {"role": "system", "content": text}


def text(words):
    return {"type": "text", "text": words}


def call(name="a", **fields):
    return {"type": "tool_use", "id": name, "name": "add", "input": {"x": 1}, **fields}


def result(name="a", content="2", **fields):
    return {"type": "tool_result", "tool_use_id": name, "content": content, **fields}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def flat(*messages, **fields):
    body = msgspec.json.encode({"model": "tiny", "max_tokens": 9, "messages": messages, **fields})
    request = decode_json(body, MessagesRequest, wrong=wrong_value)
    return flatten(request.system, request.messages)


REFUSED = {
    "the assistant first": ([SAID, HI], "messages.0.role", "the first message is the user's"),
    "the system first": ([system(), HI], "messages.0.role", "in 'system'"),
    "two of the system": ([HI, system(), system(), SAID, HI], "messages.2.role", "follow each other"),
    "a picture of the system's": ([HI, {"role": "system", "content": [call()]}], "messages.1.content.0", "'text' only"),
    "nothing": ([{"role": "user", "content": ""}], "messages.0.content", "must not be empty"),
    "no block": ([user()], "messages.0.content", "must not be empty"),
    "white space": ([{"role": "user", "content": " \n"}], "messages.0.content", "white space"),
    "an empty block": ([user(text("a"), text(""))], "messages.0.content.1.text", "must not be empty"),
    "an empty system message": ([HI, system("")], "messages.1.content", "must not be empty"),
    "a result of nothing": ([user(result("x"))], "messages.0.content.0.tool_use_id", "'x' names no tool_use"),
    "a result too late": (
        [HI, assistant(call()), user(result()), SAID, user(result())],
        "messages.4.content.0.tool_use_id",
        "'a' names no tool_use in the turn before",
    ),
    "two results": (
        [HI, assistant(call()), user(result(), result())],
        "messages.2.content.1.tool_use_id",
        "has a result already",
    ),
    "no result": ([HI, assistant(call(), call("b")), HI], "messages.1", "do not follow right after it: a, b"),
    "one result of two": ([HI, assistant(call(), call("b")), user(result("b"))], "messages.1", "right after it: a"),
    "a word from the system before a result": (
        [HI, assistant(call()), system(), user(result())],
        "messages.1",
        "right after it: a",
    ),
    "words before a result": (
        [HI, assistant(call()), user(text("so:"), result())],
        "messages.2.content.1",
        "before everything else",
    ),
    "an id twice": (
        [HI, assistant(call()), user(result()), assistant(call()), user(result())],
        "messages.3.content.0.id",
        "'a' is the id of an earlier tool_use",
    ),
    "a call of the user's": ([user(call())], "messages.0.content.0", "stand in the assistant's turns"),
    "thoughts of the user's": (
        [user({"type": "thinking", "thinking": "hm", "signature": "x"})],
        "messages.0.content.0",
        "stand in the assistant's turns",
    ),
    "a result of the assistant's": (
        [HI, assistant(call(), result()), HI],
        "messages.1.content.1",
        "stand in the user's turns",
    ),
    "citations of the user's": (
        [user({**text("a"), "citations": [{"type": "char_location"}]})],
        "messages.0.content.0.citations",
        "only the assistant's",
    ),
    # Types of fields
    "a number for a text": ([user({"type": "text", "text": 3})], "messages.0.content.0.text", "expected str, got int"),
    "a text within a result": (
        [HI, assistant(call()), user(result(content=[{"type": "text", "text": None}]))],
        "messages.2.content.0.content.0.text",
        "expected str, got null",
    ),
    "no text": ([user({"type": "text"})], "messages.0.content.0.text", "is needed and not there"),
    "a call without an id": (
        [HI, assistant({"type": "tool_use", "name": "add", "input": {}})],
        "messages.1.content.0.id",
        "is needed and not there",
    ),
    "a list of arguments": ([HI, assistant(call(input=[1]))], "messages.1.content.0.input", "expected object, got array"),
    "a stranger among fields": (
        [user({**text("a"), "colour": "red"})],
        "messages.0.content.0.colour",
        "is not supported by this node",
    ),
    "no type": ([user({"text": "a"})], "messages.0.content.0.type", "is needed and not there"),
    "a picture": ([user({"type": "image", "source": {}})], "messages.0.content.0", "image blocks are not supported"),
    "a picture within a result": (
        [HI, assistant(call()), user(result(content=[{"type": "image", "source": {}}]))],
        "messages.2.content.0.content.0",
        "image blocks are not supported",
    ),
    "a scanned document": (
        [user({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}})],
        "messages.0.content.0.source.type",
        "documents from 'base64' cannot be read here",
    ),
    "wished citations": (
        [user({"type": "document", "source": {"type": "text", "data": "x"}, "citations": {"enabled": True}})],
        "messages.0.content.0.citations.enabled",
        "",
    ),
    "a mark that is none": (
        [user({**text("a"), "cache_control": "yes"})],
        "messages.0.content.0.cache_control",
        "expected object | null, got str",
    ),
    "one word for all": ({"role": "user"}, "messages", "expected array, got object"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_cannot_be_is_refused_by_its_place(wrong):
    messages, where, said = REFUSED[wrong]
    body = {"model": "tiny", "max_tokens": 9, "messages": messages}
    with pytest.raises(RequestError) as caught:
        decode_json(msgspec.json.encode(body), MessagesRequest, wrong=wrong_value).generation("client", "r")
    assert caught.value.param == where
    assert str(caught.value).startswith(f"{where}: ")
    assert said in str(caught.value)


def test_an_empty_block_of_the_system_prompt_is_refused():
    with pytest.raises(RequestError, match=r"^system\.1\.text: "):
        flat(HI, system=[text("a"), text(" ")])
    assert flat(HI, system="") == (ChatMessage("user", "hi"),)


def test_neighbours_of_one_role_are_one_turn():
    said = flat(HI, user(text("and "), text("this")), SAID, assistant(text("well"), call()), user(result()), HI)
    assert said == (
        ChatMessage("user", "hi\n\nand this"),
        ChatMessage("assistant", "yes?\n\nwell", calls=(ToolCall("a", "add", '{"x":1}'),)),
        ChatMessage("tool", "2", "add", call_id="a"),
        ChatMessage("user", "hi"),
    )


def test_results_may_come_in_several_turns_of_the_user_in_any_order():
    said = flat(HI, assistant(call(), call("b")), user(result("b", "3")), user(result(content=None, is_error=True)))
    assert said[2:] == (
        ChatMessage("tool", "3", "add", call_id="b"),
        ChatMessage("tool", "Error: ", "add", call_id="a"),
    )


def test_the_system_may_speak_in_the_middle_and_at_the_end():
    said = flat(HI, system(), HI, SAID, system("Go on."), HI, system([text("a"), text("b")]), system="First.")
    assert [message.role for message in said] == [
        "system",
        "user",
        "system",
        "user",
        "assistant",
        "system",
        "user",
        "system",
    ]
    assert said[-1].content == "a\n\nb"


def test_an_answer_without_words_is_taken_back():
    assert flat(HI, assistant(), HI, {"role": "assistant", "content": ""}, HI)[1] == ChatMessage("assistant", "")


def test_documents_and_finds_are_told_as_text():
    said = flat(
        user(
            {"type": "document", "title": "Log", "context": "of a ship", "source": {"type": "text", "media_type": "text/plain", "data": "Day 1"}},
            {"type": "document", "source": {"type": "content", "content": [text("a"), text("b")]}, "citations": {"enabled": False}},
            {"type": "search_result", "title": "T", "source": "S", "content": [text("found")]},
            text("So?"),
        )
    )  # fmt: skip
    assert said == (ChatMessage("user", "Log\n\nof a ship\n\nDay 1\n\na\n\nb\n\nT\nS\n\nfound\n\nSo?"),)
    found = user(result(content=[{"type": "tool_reference", "tool_name": "add"}, text("!")]))
    assert flat(HI, assistant(call()), found)[2].content == "add\n!"


def test_thoughts_of_other_servers_are_left_out_and_own_ones_go_back():
    thoughts = assistant(
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "?"},
        {**text("yes"), "citations": None},
    )
    assert flat(HI, thoughts, HI)[1] == ChatMessage("assistant", "yes", reasoning="hm")
