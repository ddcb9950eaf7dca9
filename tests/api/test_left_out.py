"""Tools that nobody here can run are left out on every surface alike, and the head of the answer says which."""

import pytest

SEARCH = {"type": "web_search", "filters": {"allowed_domains": ["a.b"]}}
SCREEN = {"type": "screen", "width": 1024}
FUNCTION = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
HI = [{"role": "user", "content": "hi"}]
FLAT = {"type": "function", "name": "add", "parameters": {"type": "object"}}
OURS = {"name": "add", "input_schema": {"type": "object"}}

CHATS = {
    "chat": ("/v1/chat/completions", {"messages": HI}, FUNCTION),
    "responses": ("/v1/responses", {"input": "hi"}, FLAT),
    "messages": ("/v1/messages", {"messages": HI, "max_tokens": 9}, OURS),
    "ollama": ("/api/chat", {"messages": HI}, FUNCTION),
}


@pytest.fixture(params=CHATS)
def surface(request):
    return CHATS[request.param]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_tools_that_cannot_be_run_are_left_out_and_named(serve, surface, stream):
    path, body, tool = surface
    async with serve() as node, node.client() as http:
        body = {"model": "tiny", "stream": stream, **body}
        answer = await http.post(path, json={**body, "tools": [SEARCH, tool, SCREEN, SEARCH]})
        assert (
            answer.headers["x-meshnode-warning"] == "tools that this node cannot run were left out: web_search, screen"
        )
        (request,) = node.router.requests[-1]
        assert [shown.name for shown in request.tools.tools] == ["add"]
        answer = await http.post(path, json={**body, "tools": [tool]})
        assert answer.status_code == 200
        assert "x-meshnode-warning" not in answer.headers


async def test_a_name_that_no_head_can_hold_and_a_long_list_are_told_all_the_same(serve, surface):
    path, body, _ = surface
    odd = [{"type": f"é\r\nX-Evil: {index}" + "x" * 99} for index in range(20)]
    async with serve() as node, node.client() as http:
        answer = await http.post(path, json={"model": "tiny", **body, "tools": odd})
        assert answer.status_code == 200
        said = answer.headers["x-meshnode-warning"]
        assert said.startswith("tools that this node cannot run were left out: ???X-Evil: 0xxx")
        assert said.endswith(" and 4 more")
        assert len(said) < 1300


@pytest.mark.parametrize(
    ("path", "choice"),
    [
        ("/v1/chat/completions", {"type": "web_search"}),
        ("/v1/chat/completions", {"type": "custom", "custom": {"name": "x"}}),
        ("/v1/responses", {"type": "web_search"}),
        ("/v1/messages", {"type": "tool", "name": "web_search"}),
        ("/v1/messages", {"type": "any"}),
    ],
)
async def test_what_is_left_out_cannot_be_asked_for(serve, path, choice):
    body = next(body for where, body, _ in CHATS.values() if where == path)
    async with serve() as node, node.client() as http:
        answer = await http.post(path, json={"model": "tiny", **body, "tools": [SEARCH, SCREEN], "tool_choice": choice})
        assert answer.status_code == 400
        assert "this node can" in answer.json()["error"]["message"]
        assert not node.router.requests
