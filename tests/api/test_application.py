"""Routes, refusals and their shapes, over a real socket."""

import itertools
import json
from contextlib import suppress

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from support.api import CHAT, KEY, FakeRouter

from meshnode import errors
from meshnode.api.failures import failure_of
from meshnode.types.generation import Finished, FinishReason, Usage


def leaves(kind=errors.MeshnodeError):
    below = kind.__subclasses__()
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


@pytest.mark.parametrize("kind", [kind for kind in leaves() if kind.__module__ == "meshnode.errors"])
def test_every_error_has_a_status(kind):
    error = kind("words", exit_code=1) if kind is errors.Fatal else kind("words")
    failure = failure_of(error)
    assert 400 <= failure.status < 600
    assert (failure.message, failure.code) == ("words", kind.code)


async def test_a_whole_answer(serve):
    async with serve() as node, node.client() as client:
        reply = await client.post("/v1/chat/completions", json=CHAT)
        body = reply.json()
    assert reply.status_code == 200
    assert body["choices"][0]["message"]["content"] == "Hello, world"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 10
    assert reply.headers["x-meshnode-route"] == "local 0:2"
    assert "total;dur=" in reply.headers["server-timing"]
    assert reply.headers["x-request-id"]
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_an_answer_that_outlived_a_loss_says_so(serve):
    ending = Finished(FinishReason.STOP, Usage(7, 2), route="a 0:1 > c 1:2 (2 stages)", recoveries=1, pause=0.25)
    async with serve(FakeRouter(ending=ending)) as node, node.client() as client:
        whole = await client.post("/v1/chat/completions", json=CHAT)
        chat = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        response = await client.post("/v1/responses", json={"model": "tiny", "input": "hi", "stream": True})
    assert whole.headers["x-meshnode-recovered"] == "1"
    assert whole.headers["x-meshnode-route"] == "a 0:1 > c 1:2 (2 stages)"
    assert "recovery;dur=250.0" in whole.headers["server-timing"]
    for stream in (chat, response):  # its head was sent before the loss
        assert "x-meshnode-recovered" not in stream.headers
        assert ": x-meshnode-recovered: 1; pause=250ms; route=a 0:1 > c 1:2 (2 stages)\n\n" in stream.text


async def test_a_streamed_answer(serve):
    async with serve() as node, node.client() as client:
        request = CHAT | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
        reply = await client.post("/v1/chat/completions", json=request)
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert chunks.pop()["usage"]["completion_tokens"] == 6
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in own) == "Hello, world"
        assert [choice["finish_reason"] for choice in own][-1] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_every_parameter_reaches_the_router(serve):
    request = CHAT | {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7, "max_completion_tokens": 9, "stop": ["a", "b"],
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"12": -100}, "logprobs": True, "top_logprobs": 3,
        "messages": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        "user": "me", "metadata": {"a": "b"}, "store": False, "n": 2,
    }  # fmt: skip
    async with serve() as node, node.client() as client:
        reply = await client.post("/v1/chat/completions", json=request)
        first, second = node.router.requests[0]
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.05)
    assert sampling.seed == 7
    assert second.sampling.seed not in range(20), "seed 8's first choice would be this one's second"
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.logit_bias == ((12, -100.0),)
    assert sampling.top_logprobs == 3
    assert (first.max_tokens, first.stop) == (9, ("a", "b"))
    assert [(message.role, message.content) for message in first.messages] == [("system", "Be kind."), ("user", "ab")]
    logprobs = reply.json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in logprobs] == ["Hello", ", ", "world"]
    assert logprobs[0]["bytes"] == list(b"Hello")
    assert logprobs[0]["top_logprobs"][0]["logprob"] == -0.25


BAD = [
    ({"temperature": -1}, "temperature"), ({"temperature": 3}, "temperature"), ({"top_p": 0}, "top_p"), ({"min_p": 2}, "min_p"),
    ({"top_k": -1}, "top_k"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -5}, "max_tokens"), ({"n": 0}, "n"), ({"n": 9}, "n"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"), ({"stop": ["x"] * 40}, "stop"), ({"stop": [""]}, "stop"),
    ({"stop": "x" * 300}, "stop"), ({"presence_penalty": 3}, "presence_penalty"), ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"messages": []}, "messages"), ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"temperature": "hot"}, "temperature"), ({"model": 5}, "model"), ({"messages": "hi"}, "messages"), ({"seed": 1.5}, "seed"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"), ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
    ({"tools": [{"type": "function"}]}, "tools[0].function"), ({"response_format": {"type": "xml"}}, "response_format"), ({"audio": {}}, "audio"),
    ({"store": True}, "store"), ({"nonsense": 1}, "nonsense"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), BAD, ids=[json.dumps(change)[:40] for change, _ in BAD])
async def test_bad_parameters_are_named(serve, change, param):
    async with serve() as node, node.client() as client:
        reply = await client.post("/v1/chat/completions", json=CHAT | change)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_request")
    if param is not None:
        assert error["param"] == param
        assert node.router.requests == []


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"), (b"{", "not valid JSON"), (b'{"a":', "not valid JSON"), (b'{"model": NaN}', "not valid JSON"), (b"\xff\xfe", "not valid JSON"),
        (b'{"model": "m",\n "messages": [}', "line 2, column"), (b"[" * 100_000, "nested too deeply"), (b"[]", "Expected `object`"),
        (b'{"temperature": Infinity}', "not valid JSON"),
    ],
)  # fmt: skip
async def test_malformed_json_says_where(serve, raw, words):
    async with serve() as node, node.client() as client:
        headers = {"content-type": "application/json"}
        reply = await client.post("/v1/chat/completions", content=raw, headers=headers)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


async def test_errors_of_the_router_become_statuses(serve):
    cases = [
        (errors.UnknownModel("no such", param="model"), 404), (errors.ContextOverflow("long"), 400), (errors.NoRoute("part"), 503),
        (errors.Overloaded("busy", retry_after=7), 429), (errors.DeadlineExceeded("slow"), 504), (errors.MeshnodeError("bug"), 500),
        (errors.OutOfMemory("full"), 503),
    ]  # fmt: skip
    async with serve() as node, node.client() as client:
        for (error, status), stream in itertools.product(cases, (False, True)):
            node.router.error = error
            reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
            assert node.router.running == 0
            assert reply.status_code == status
            assert reply.json()["error"]["message"] == str(error)
            if status == 429:
                assert reply.headers["retry-after"] == "7"


async def test_the_key_is_needed_where_it_matters(serve):
    async with serve() as node, node.client(Authorization="Bearer wrong") as client:
        for path in ("/v1/models", "/api/admin/status", "/nothing"):
            reply = await client.get(path)
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/health/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200
        assert (await client.head("/health")).status_code == 200


async def test_foreign_hosts_and_origins_are_refused(serve):
    async with serve() as node, node.client() as client:
        assert (await client.get("/v1/models", headers={"Host": "evil.example"})).status_code == 403
        assert (await client.get("/v1/models", headers={"Origin": "http://evil.example"})).status_code == 403
        assert (await client.get("/v1/models", headers={"Origin": node.url})).status_code == 200
        assert (await client.get("/v1/models", headers={"Host": "localhost:1"})).status_code == 200


async def test_unknown_routes_and_methods_have_the_error_shape(serve):
    async with serve() as node, node.client() as client:
        missing = await client.get("/v2/nothing")
        wrong = await client.put("/v1/models")
        text = await client.post("/v1/chat/completions", content=b"hi", headers={"content-type": "text/plain"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert (text.status_code, text.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_bodies_have_a_limit_declared_or_not(serve):
    async with serve(body_limit_bytes=10_000) as node, node.client() as client:
        declared = await client.post("/v1/chat/completions", json=CHAT | {"user": "x" * 20_000})
        assert (declared.status_code, declared.json()["error"]["code"]) == (413, "request_too_large")
        assert "10000 bytes" in declared.json()["error"]["message"]
        stream = await node.raw()
        extra = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        await stream.send_all(
            node.head("POST", "/v1/chat/completions", extra) + (b"3e8\r\n" + b" " * 1000 + b"\r\n") * 20
        )
        with trio.fail_after(10):
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/mcp"])
@pytest.mark.parametrize("extra", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_never_ends_times_out(serve, path, extra):
    async def trickle(stream):
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"1\r\n \r\n" if "chunked" in extra else b" ")
                await trio.sleep(0.05)

    async with serve(body_timeout=0.2) as node, trio.open_nursery() as nursery:
        stream = await node.raw()
        await stream.send_all(node.head("POST", path, f"Content-Type: application/json\r\n{extra}\r\n"))
        nursery.start_soon(trickle, stream)
        with trio.fail_after(10):
            reply = await stream.receive_some(65536)
        assert reply.startswith(b"HTTP/1.1 408")
        nursery.cancel_scope.cancel()


async def test_too_many_requests_are_told_when_to_come_back(serve):
    async with serve(requests_per_minute=6) as node, node.client() as client:
        replies = [await client.get("/v1/models") for _ in range(4)]
    assert [reply.status_code for reply in replies][-1] == 429
    assert int(replies[-1].headers["retry-after"]) >= 1


async def test_models_are_listed_and_found_by_alias(serve):
    async with serve() as node, node.client() as client:
        listed = (await client.get("/v1/models")).json()
        shown = (await client.get("/v1/models/small")).json()
        missing = await client.get("/v1/models/huge")
    assert [model["id"] for model in listed["data"]] == ["tiny", "small"]  # every name that may be asked for
    assert shown["context_length"] == 1024
    assert missing.status_code == 404
    assert "tiny" in missing.json()["error"]["message"]


async def test_readiness_names_what_is_missing(serve):
    async with serve(unready=("InferenceRouter", "model starter")) as node, node.client() as client:
        reply = await client.get("/health/ready")
    assert reply.status_code == 503
    assert reply.json()["not_ready"] == ["InferenceRouter", "model starter"]


async def test_metrics_are_valid_and_count_requests(serve):
    async with serve() as node, node.client() as client:
        await client.get("/health")
        families = list(text_string_to_metric_families((await client.get("/metrics")).text))
    samples = [
        sample for family in families for sample in family.samples if sample.name == "meshnode_api_requests_total"
    ]
    assert any(sample.labels == {"route": "/health", "status": "200"} for sample in samples)


async def test_the_admin_routes(serve):
    async with serve() as node, node.client() as client:
        assert (await client.get("/api/admin/status")).json() == {"pid": 1}
        assert (await client.get("/api/admin/models")).json()["models"][0]["name"] == "tiny"
        added = await client.post("/api/admin/models", json={"reference": "starter"})
        refused = await client.post("/api/admin/models", json={"reference": "nope"})
        gone = await client.delete("/api/admin/models/huge")
        kept = await client.delete("/api/admin/models/tiny", params={"force": "false"})
        unclear = await client.delete("/api/admin/models/tiny", params={"force": "perhaps"})
        unknown = await client.delete("/api/admin/models/tiny", params={"colour": "red"})
        removed = await client.delete("/api/admin/models/tiny", params={"force": "true"})
        assert (await client.post("/api/admin/shutdown")).status_code == 202
        assert node.stopped == [True]
    assert (added.status_code, refused.status_code, gone.status_code, removed.status_code) == (201, 404, 404, 200)
    assert (kept.status_code, kept.json()["error"]["code"]) == (409, "last_copy")
    assert [(no.status_code, no.json()["error"]["param"]) for no in (unclear, unknown)] == [
        (400, "force"),
        (400, "colour"),
    ]


async def test_the_key_is_compared_in_constant_time_and_not_echoed(serve):
    async with serve() as node, node.client(Authorization="Bearer tes") as client:
        assert KEY not in (await client.get("/v1/models")).text
