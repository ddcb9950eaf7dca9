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


@pytest.mark.parametrize("prompt", ["", " \n", b"\xff\xfe"])
def test_an_empty_or_unreadable_prompt_is_wrong_usage(answering, invoke, prompt):
    assert invoke("chat", input=prompt).exit_code == 2


def test_an_argument_that_is_not_text_is_wrong_usage(answering, invoke):
    assert invoke("chat", "\udcff").exit_code == 2


def test_options_can_come_from_the_environment(answering, invoke):
    assert invoke("chat", "Hi", env={"MESHNODE_CHAT_MODEL": "cold", "MESHNODE_CHAT_SEED": "3"}).exit_code == 0
    assert (answering.requests[-1][2]["model"], answering.requests[-1][2]["seed"]) == ("cold", 3)


def test_options_can_come_from_the_file_and_flags_beat_it(answering, invoke, tmp_path):
    (tmp_path / "config.toml").write_text(
        "[chat]\nseed = 3\ntemperature = 0.5\nsystem = 'Be kind.'\n[cli]\njson = true\n"
    )
    result = invoke("chat", "Hi", "--seed", "4")
    assert json.loads(result.stdout)["text"] == "Hello\u00e9", result.stderr
    body = answering.requests[-1][2]
    assert (body["seed"], body["temperature"], body["messages"][0]["content"]) == (4, 0.5, "Be kind.")


def test_a_bad_option_in_the_environment_is_a_configuration_error(answering, invoke):
    result = invoke("chat", "Hi", env={"MESHNODE_CHAT_TEMPERATURE": "9"})
    assert result.exit_code == 64
    assert "MESHNODE_CHAT_TEMPERATURE" in result.stderr


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_json_needs_a_prompt_where_a_conversation_would_begin(answering, invoke, monkeypatch, by):
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    if by == "variable":
        monkeypatch.setenv("MESHNODE_JSON", "1")
    result = invoke("chat", *(("--json",) if by == "flag" else ()))
    assert result.exit_code == 2
    assert "PROMPT" in result.stderr


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


def test_a_model_that_is_being_loaded_is_asked_and_said_so(answering, invoke):
    answering.answers["GET", "/v1/models"] = {"data": [{"id": "cold", "loaded": False}]}
    result = invoke("chat", "Hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\u00e9\n", "cold is being loaded\n")
    assert answering.requests[-1][2]["model"] == "cold"


def test_no_model_says_what_to_do(answering, invoke):
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


@pytest.fixture
def converse(answering, monkeypatch):
    """Return a function that types lines into a conversation and returns the roles of the last request."""
    from meshnode.cli import chat
    from meshnode.cli.address import find_api_key, locate
    from meshnode.cli.client import Client
    from meshnode.cli.options import settings

    def run(*lines):
        left = iter(lines)

        def typed(_):
            line = next(left, EOFError())
            if isinstance(line, BaseException):
                raise line
            if callable(line):
                line = line()
            return line

        monkeypatch.setattr("builtins.input", typed)
        client = Client(locate(settings(None)), find_api_key(settings(None)))
        chat._converse(chat._Conversation(client, "warm", {}, 5.0), [])
        return [message["role"] for message in answering.requests[-1][2]["messages"]]

    return run


def test_a_conversation_remembers_what_was_said(converse, answering):
    assert converse("one", "  ", "two") == ["user", "assistant", "user"]
    assert answering.requests[-1][2]["messages"][1]["content"] == "Hello\u00e9"


def test_a_question_that_fails_is_forgotten_and_the_conversation_goes_on(converse, answering, capsys):
    good = answering.answers[CHAT]

    def fails():
        answering.answers[CHAT] = (503, {"error": {"message": "the queue is full"}})
        return "refused"

    def works():
        answering.answers[CHAT] = good
        return "again"

    assert converse("one", fails, works) == ["user", "assistant", "user"]
    assert "the queue is full" in capsys.readouterr().err


def test_ctrl_c_stops_an_answer_and_forgets_the_question(converse, monkeypatch, capsys):
    from meshnode.cli.chat import _Answer

    take, interrupted = _Answer.take, []

    def once(self, event):
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return take(self, event)

    monkeypatch.setattr(_Answer, "take", once)
    assert converse("stopped", "two") == ["user"]
    assert "stopped" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_ends_the_conversation(converse):
    assert converse("one", KeyboardInterrupt(), "never typed") == ["user"]


def test_what_is_not_text_is_refused_and_the_conversation_goes_on(converse, capsys):
    assert converse("\udcff", "one") == ["user"]
    assert "not UTF-8" in capsys.readouterr().err


def test_a_node_that_goes_away_ends_the_conversation(converse, answering):
    from meshnode.cli.failures import NodeDown

    def gone():
        answering.server.shutdown()
        answering.server.server_close()
        return "hello?"

    with pytest.raises(NodeDown, match="meshnode run"):
        converse(gone)


def test_a_model_cannot_steer_the_terminal():
    from meshnode.cli.printing import printable

    assert printable("a\x1b]0;title\x07b\x9b2J\tc\n") == "a]0;titleb2J\tc\n"
