import json

import pytest

CHAT = ("POST", "/v1/chat/completions")
DONE = "data: [DONE]\n\n"


@pytest.fixture
def answering(node, sse):
    node.answers["GET", "/v1/models"] = {"data": [{"id": "cold", "loaded": False}, {"id": "warm", "loaded": True}]}
    usage = {"completion_tokens": 2}
    last = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
    node.answers[CHAT] = [": comment\n\n", sse("Hel"), sse("lo\u00e9"), sse(finish_reason="stop"), last, DONE]
    return node


def test_an_answer_is_printed_as_it_streams(answering, invoke):
    result = invoke("chat", "Hi", "--temperature", "0", "--max-tokens", "5", "--seed", "7", "--system", "Be brief.")
    assert (result.exit_code, result.stdout) == (0, "Hello\u00e9\n"), result.stderr
    body = answering.requests[-1][2]
    assert body["model"] == "warm"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (body["temperature"], body["max_tokens"], body["seed"], body["stream"]) == (0, 5, 7, True)


def test_what_was_not_given_is_not_sent(answering, invoke):
    assert invoke("chat", "Hi").exit_code == 0
    assert set(answering.requests[-1][2]) == {"model", "messages", "stream", "stream_options"}


def test_json_has_text_reason_and_usage(answering, invoke):
    answer = json.loads(invoke("chat", "--json", "--model", "m", "Hi").stdout)
    assert answer == {"model": "m", "text": "Hello\u00e9", "finish_reason": "stop", "usage": {"completion_tokens": 2}}


def test_the_prompt_is_read_from_a_pipe(answering, invoke):
    assert invoke("chat", input="from a pipe\n").exit_code == 0
    assert answering.requests[-1][2]["messages"] == [{"role": "user", "content": "from a pipe\n"}]


def test_an_empty_prompt_is_wrong_usage(answering, invoke):
    assert invoke("chat", input="").exit_code == 2


def test_options_can_come_from_the_environment(answering, invoke):
    assert invoke("chat", "Hi", env={"MESHNODE_CHAT_MODEL": "cold", "MESHNODE_CHAT_SEED": "3"}).exit_code == 0
    assert (answering.requests[-1][2]["model"], answering.requests[-1][2]["seed"]) == ("cold", 3)


@pytest.mark.parametrize("end", [[None], []], ids=["connection lost", "ended without DONE"])
def test_a_stream_cut_in_the_middle_fails_after_showing_what_came(answering, invoke, sse, end):
    answering.answers[CHAT] = [sse("half"), *end]
    result = invoke("chat", "Hi")
    assert result.exit_code == 1
    assert result.stdout == "half\n"
    assert "before the answer was complete" in result.stderr


def test_an_error_inside_the_stream_is_shown(answering, invoke, sse):
    answering.answers[CHAT] = [sse("half"), 'data: {"error": {"message": "the worker was lost"}}\n\n']
    result = invoke("chat", "Hi")
    assert (result.exit_code, result.stderr) == (1, "meshnode: the worker was lost\n")


def test_a_refusal_shows_the_node_s_words(answering, invoke):
    answering.answers[CHAT] = (404, {"error": {"message": "there is no model 'x'; there are: warm"}})
    result = invoke("chat", "--model", "x", "Hi")
    assert (result.exit_code, result.stderr) == (1, "\nmeshnode: there is no model 'x'; there are: warm\n".lstrip())


def test_no_loaded_model_says_what_to_do(answering, invoke):
    answering.answers["GET", "/v1/models"] = {"data": []}
    result = invoke("chat", "Hi")
    assert result.exit_code == 1
    assert "models add starter" in result.stderr


def test_ctrl_c_ends_with_130_and_without_a_traceback(answering, invoke, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("meshnode.cli.chat._Answer.take", interrupted)
    result = invoke("chat", "Hi")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.output


def test_a_conversation_remembers_what_was_said_and_forgets_a_stopped_question(answering, monkeypatch):
    from meshnode.cli import chat
    from meshnode.cli.client import Client, locate
    from meshnode.cli.options import settings

    lines = iter(["one", "", "two"])

    def typed(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    with Client(locate(settings(None))) as client:
        chat._converse(chat._Conversation(client, "warm", {}, 5.0), [])
    roles = [message["role"] for message in answering.requests[-1][2]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_a_model_cannot_steer_the_terminal():
    from meshnode.cli.printing import printable

    assert printable("a\x1b]0;title\x07b\x9b2J\tc\n") == "a]0;titleb2J\tc\n"
