"""One line of the log for each HTTP request, however many answers it asks for and however it ends, without a word of its caller's."""

import httpx2
import msgspec
import pytest
import structlog
import trio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from support.api import CHAT, KEY, FakeRouter

from meshnode.errors import SessionLost
from meshnode.types.generation import Delta, Finished, FinishReason, Usage

TEXT = "sesame"
ASKING = CHAT | {"messages": [{"role": "user", "content": TEXT}]}
ENDING = Finished(FinishReason.LENGTH, Usage(7, 3, cached_tokens=4), recoveries=1, route="a 0:1 > b 1:2")


@pytest.fixture
def told():
    """An async function that waits for so many lines at info, of those that have a field, and returns them."""
    with structlog.testing.capture_logs() as logs:

        async def lines(count, having="event"):
            def found():
                return [line for line in logs if line["log_level"] == "info" and having in line]

            with trio.fail_after(10):
                while len(found()) < count:  # noqa: ASYNC110  # nobody is told
                    await trio.sleep(0.01)
            assert len(found()) == count, found()
            assert TEXT not in repr(logs)
            return found()

        yield lines


@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_are_one_line_with_their_sums(serve, told, stream):
    async with serve(FakeRouter(ending=ENDING)) as node, node.client() as client:
        reply = await client.post("/v1/chat/completions", json=ASKING | {"n": 3, "stream": stream})
        (line,) = await told(1)
    assert line.pop("first_token_ms") <= line.pop("total_ms")
    assert line == {
        "event": "request", "log_level": "info", "id": reply.headers["x-request-id"], "client": "127.0.0.1",
        "method": "POST", "path": "/v1/chat/completions", "status": 200, "outcome": "ok", "model": "tiny", "route": "a 0:1 > b 1:2",
        "generations": 3, "prompt_tokens": 21, "cached_tokens": 12, "completion_tokens": 9, "finish_reason": "length", "recoveries": 3,
    }  # fmt: skip


REFUSED = [
    ("/v1/chat/completions", {"json": CHAT | {TEXT: TEXT}}, 400, "invalid_request"),
    ("/v1/chat/completions", {"json": CHAT, "headers": {"Authorization": f"Bearer {TEXT}"}}, 401, "invalid_api_key"),
    ("/v1/chat/completions", {"json": CHAT, "headers": {"Host": f"{TEXT}.example"}}, 403, "forbidden"),
    ("/v1/nothing", {"json": CHAT}, 404, "not_found"),
    ("/v1/messages", {"content": TEXT, "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
    ("/health", {}, 405, "method_not_allowed"),
    ("/mcp", {"json": {}, "headers": {"Authorization": f"Bearer {TEXT}"}}, 401, "invalid_api_key"),
    ("/mcp", {"content": TEXT, "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
]


async def test_what_is_refused_is_one_line_with_the_kind_of_error(serve, told):
    async with serve() as node, node.client() as client:
        for number, (path, asked, status, kind) in enumerate(REFUSED, 1):
            assert (await client.post(path, **asked)).status_code == status
            line = (await told(number))[-1]
            assert (line["path"], line["status"], line["outcome"], line["error"]) == (path, status, "error", kind)
            assert "reason" not in line


async def test_who_asks_too_often_is_one_line_each_time(serve, told):
    async with serve(requests_per_minute=6) as node, node.client() as client:
        replies = [await client.get("/v1/models") for _ in range(3)]
        lines = await told(3)
    assert [line["status"] for line in lines] == [reply.status_code for reply in replies] == [200, 429, 429]
    assert [line.get("error") for line in lines] == [None, "rate_limit_exceeded", "rate_limit_exceeded"]
    assert "model" not in lines[0]


async def test_an_answer_that_breaks_off_says_why(serve, told):
    async with (
        serve(FakeRouter(error=SessionLost("the worker is gone"), fail_after=2)) as node,
        node.client() as client,
    ):
        await client.post("/v1/chat/completions", json=ASKING | {"stream": True})
        (line,) = await told(1)
    assert (line["status"], line["outcome"]) == (200, "error")
    assert (line["error"], line["reason"]) == ("session_lost", "the worker is gone")


async def test_of_a_client_that_left_it_is_told_how_far_its_answer_had_come(serve, told):
    words = [Delta("word ", tokens=(5,))] * 3
    body = msgspec.json.encode({"model": "tiny", "prompt": TEXT, "stream": True})
    extra = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    async with serve(FakeRouter(words=words, stops_after=2)) as node:
        stream = await node.raw()
        await stream.send_all(node.head("POST", "/v1/completions", extra) + body)
        seen = b""
        with trio.fail_after(10):
            while seen.count(b"word ") < 2:
                seen += await stream.receive_some(65536)
        await stream.aclose()
        (line,) = await told(1)
    assert (line["status"], line["outcome"], line["finish_reason"]) == (200, "cut off", "")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 2)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_call_of_a_tool_is_the_line_of_its_request(serve, told):
    async with serve() as node:
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=20, trust_env=False)
        async with Client(streamable_http_client(f"{node.url}/mcp", http_client=http)) as mcp:
            await mcp.call_tool("batch_prompts", {"prompts": [TEXT, "b"]})
            await mcp.call_tool("chat", {"prompt": TEXT, "temperature": 9})
            (asked,), (refused,) = await told(1, "model"), await told(1, "error")
    assert (asked["path"], asked["generations"], asked["completion_tokens"], asked["outcome"]) == ("/mcp", 2, 6, "ok")
    assert (refused["status"], refused["outcome"], refused["error"]) == (200, "error", "invalid_request")


async def test_an_answer_in_the_background_has_a_line_of_its_own(serve, told):
    async with serve() as node, node.client() as client:
        await client.post("/v1/responses", json={"model": "tiny", "input": TEXT, "background": True})
        lines = {line["event"]: line for line in await told(2)}
    assert lines["request"]["id"] == lines["background answer"]["id"]
    assert "model" not in lines["request"]
    assert (lines["background answer"]["outcome"], lines["background answer"]["completion_tokens"]) == ("ok", 3)


async def test_who_only_looks_at_the_node_is_told_at_debug(serve, told):
    async with serve(unready=("tiny",)) as node, node.client() as client:
        for path, status in (("/health", 200), ("/health/ready", 503), ("/metrics", 200), ("/api/admin/status", 200)):
            assert (await client.get(path)).status_code == status
        assert (await client.get("/metrics", headers={"Authorization": "", "Via": "a proxy"})).status_code == 401
        (line,) = await told(1)
    assert (line["path"], line["status"]) == ("/metrics", 401)
