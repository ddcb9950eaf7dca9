"""How each surface says that there will be no answer: by a status at first, by its own last event in mid-stream."""

import json

import pytest
import trio
from support.api import FakeRouter

from meshnode.errors import ContextOverflow, RequestError, SessionLost, Unavailable

MESSAGES = [{"role": "user", "content": "hi"}]
STREAMING = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "hi"},
}
WHOLE = {"/v1/embeddings": {"input": "hi"}, "/api/embed": {"input": "hi"}, "/api/embeddings": {"prompt": "hi"}}
NATURAL = (
    "[DONE]",
    '"message_stop"',
    '"stop_reason":"end_turn"',
    '"response.completed"',
    '"done":true',
    '"finish_reason":"stop"',
)


def events(text):
    """Return what a stream said, all of it whole JSON."""
    assert text.endswith("\n")
    if text.lstrip().startswith("{"):
        return [json.loads(line) for line in text.splitlines()]
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def sentence(path, last):
    """Return the sentence of an error that has the shape of its path."""
    if path.startswith("/api/"):
        assert set(last) == {"error"}
        return last["error"]
    if path == "/v1/messages":
        assert (last["type"], last["error"]["type"] in ("api_error", "invalid_request_error")) == ("error", True)
        return last["error"]["message"]
    if last.get("type") == "response.failed":
        assert (last["response"]["status"], last["response"]["error"]["code"]) == ("failed", "server_error")
        return last["response"]["error"]["message"]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    return last["error"]["message"]


@pytest.mark.parametrize("path", STREAMING)
async def test_a_stream_that_cannot_go_on_ends_with_the_error_of_its_surface(serve, path):
    router = FakeRouter(error=SessionLost("the worker is gone"), fail_after=2)
    async with serve(router) as node, node.client() as http:
        reply = await http.post(path, json={"model": "tiny", "stream": True, **STREAMING[path]})
        assert reply.status_code == 200
        *before, last = events(reply.text)
        assert "Hello" in json.dumps(before)
        assert sentence(path, last) == "the worker is gone"
        assert [end for end in NATURAL if end in reply.text] == []
        whole = await http.post(path, json={"model": "tiny", "stream": False, **STREAMING[path]})
        assert (whole.status_code, sentence(path, whole.json())) == (503, "the worker is gone")


async def test_what_fails_after_a_long_silence_is_the_streams_last_event(serve):
    """The head has been sent by then, so that no proxy gives up."""
    router = FakeRouter(error=Unavailable("too little memory"))
    async with serve(router, heartbeat=0.01) as node, node.client() as http:
        for path, body in STREAMING.items():
            router.queue = trio.Event()
            async with http.stream("POST", path, json={"model": "tiny", "stream": True, **body}) as reply:
                assert reply.status_code == 200
                router.queue.set()
                text = (await reply.aread()).decode()
            assert sentence(path, events(text)[-1]) == "too little memory"
            assert [end for end in NATURAL if end in text] == []


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (Unavailable("tiny cannot be loaded now: too little memory"), 503, "1"),
        (RequestError("tiny makes vectors of texts and writes none itself", param="model"), 400, None),
    ],
    ids=["a model that cannot be loaded", "a model that does not write"],
)
async def test_what_fails_at_first_is_a_status_and_says_when_to_come_back(serve, error, status, retry):
    async with serve(FakeRouter(error=error)) as node, node.client() as http:
        for path, body in {**STREAMING, **WHOLE}.items():
            for stream in [{"stream": True}, {"stream": False}] if path in STREAMING else [{}]:
                refused = await http.post(path, json={"model": "tiny", **body, **stream})
                assert (refused.status_code, refused.headers.get("retry-after")) == (status, retry), path
                assert refused.headers["content-type"] == "application/json"
                assert sentence(path, refused.json()) == str(error)


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_call_what_is_too_long_by_their_own_name(serve, stream):
    async with serve(FakeRouter(error=ContextOverflow("too long", param="messages"))) as node, node.client() as http:
        for path, param in (("/v1/responses", "input"), ("/v1/chat/completions", "messages")):
            refused = await http.post(path, json={"model": "tiny", **{**STREAMING, **WHOLE}[path], "stream": stream})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
