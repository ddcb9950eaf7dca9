"""The official SDK's client against /mcp, over a real socket."""

import json

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from support.api import KEY, FakeRouter

from meshnode.errors import UnknownModel

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning")]


def client(node, key=KEY):
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=20, trust_env=False)
    return Client(streamable_http_client(f"{node.url}/mcp", http_client=http))


def told(result):
    return json.loads(result.content[0].text)


async def test_tools_are_listed_and_answer(serve):
    async with serve() as node, client(node) as mcp:
        names = [tool.name for tool in (await mcp.list_tools()).tools]
        assert names == ["chat", "compare", "batch_prompts", "models", "node_info", "mesh_status"]
        result = await mcp.call_tool("chat", {"prompt": "hi", "system": "Be brief.", "max_tokens": 5, "temperature": 0})
        assert result.content[0].text == "Hello, world"
        (request,) = node.router.requests[-1]
        assert [message.content for message in request.messages] == ["Be brief.", "hi"]
        assert (request.max_tokens, request.sampling.temperature, request.as_advised) == (5, 0, False)


async def test_many_things_are_asked_at_once(serve):
    async with serve() as node, client(node) as mcp:
        answers = told(await mcp.call_tool("batch_prompts", {"prompts": ["a", "b"]}))
        assert answers == [{"prompt": "a", "answer": "Hello, world"}, {"prompt": "b", "answer": "Hello, world"}]
        answers = told(await mcp.call_tool("compare", {"prompt": "a", "models": ["tiny", "small"]}))
        assert [answer["model"] for answer in answers] == ["tiny", "small"]
        assert [request.model for request in node.router.requests[-1]] == ["tiny", "small"]


async def test_the_node_and_its_models_are_told_of_by_tool_and_by_resource(serve):
    async with serve() as node, client(node) as mcp:
        assert told(await mcp.call_tool("models", {}))[0]["name"] == "tiny"
        assert isinstance(told(await mcp.call_tool("node_info", {})), dict)
        assert "peers" in told(await mcp.call_tool("mesh_status", {}))
        uris = [str(resource.uri) for resource in (await mcp.list_resources()).resources]
        assert uris == ["meshnode://status", "meshnode://models"]
        contents = (await mcp.read_resource("meshnode://models")).contents
        assert json.loads(contents[0].text)[0]["name"] == "tiny"
        with pytest.raises(MCPError, match="no resource"):
            await mcp.read_resource("meshnode://nothing")


async def test_a_failure_of_a_tool_is_told_to_the_model(serve):
    async with serve(FakeRouter(error=UnknownModel("there is no model 'x'"))) as node, client(node) as mcp:
        result = await mcp.call_tool("chat", {"prompt": "hi", "model": "x"})
        assert result.is_error
        assert "no model" in result.content[0].text


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("chat", {}),
        ("chat", {"prompt": 5}),
        ("chat", {"prompt": "x", "colour": "red"}),
        ("chat", {"prompt": "x", "temperature": 9}),
        ("chat", {"prompt": "x", "max_tokens": 0}),
        ("compare", {"prompt": "x", "models": []}),
        ("batch_prompts", {"prompts": ["x"] * 65}),
    ],
)
async def test_arguments_that_do_not_fit_are_told_to_the_model(serve, name, arguments):
    async with serve() as node, client(node) as mcp:
        assert (await mcp.call_tool(name, arguments)).is_error
        assert not node.router.requests


async def test_a_tool_that_is_not_there_is_an_error_of_the_protocol(serve):
    async with serve() as node, client(node) as mcp:
        with pytest.raises(MCPError, match="there are: chat"):
            await mcp.call_tool("fly", {})


async def test_strangers_and_foreign_pages_are_kept_out(serve):
    async with serve() as node, node.client() as http:
        assert (await http.post("/mcp", json={}, headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await http.post("/mcp", json={}, headers={"Origin": "http://evil.example"})).status_code == 403
        assert (await http.post("/mcp", json={}, headers={"Host": "evil.example"})).status_code == 403


async def test_an_unknown_session_is_404_so_that_hosts_begin_anew(serve):
    async with serve() as node, node.client() as http:
        headers = {"mcp-session-id": "gone", "Accept": "application/json, text/event-stream"}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert (await http.post("/mcp", json=body, headers=headers)).status_code == 404


async def test_what_is_refused_has_the_heads_and_the_counts_of_all_answers(serve):
    async with serve(body_limit_bytes=1000, requests_per_minute=12) as node, node.client() as http:
        text = await http.post("/mcp", content=b"{}", headers={"Content-Type": "text/plain"})
        assert (text.status_code, text.json()["error"]["code"]) == (415, "unsupported_media_type")
        for name in ("x-request-id", "x-content-type-options", "content-security-policy"):
            assert name in text.headers
        long = await http.post("/mcp", json={"x": "x" * 2000})
        assert (long.status_code, long.json()["error"]["code"]) == (413, "request_too_large")
        late = [reply for _ in range(4) if (reply := await http.post("/mcp", json={})).status_code == 429][-1]
        assert f"again in {late.headers['retry-after']} s" in late.json()["error"]["message"]
        for status in ("415", "413", "429"):
            assert node.dependencies.metrics.api_requests_total.labels(route="/mcp", status=status)._value.get() >= 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"jsonrpc": "1.0"}', b"\xff\xfe"])
async def test_garbage_is_refused(serve, body):
    async with serve() as node, node.client() as http:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        assert 400 <= (await http.post("/mcp", content=body, headers=headers)).status_code < 500
