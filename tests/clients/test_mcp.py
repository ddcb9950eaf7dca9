"""The official SDK's client of MCP against a real node."""

import json

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

pytestmark = [pytest.mark.processes, pytest.mark.starter, pytest.mark.filterwarnings("ignore::ResourceWarning")]

SHORT = {"max_tokens": 2, "temperature": 0}


async def test_a_model_is_asked_by_tool(node, key):
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
    async with Client(streamable_http_client(f"{node.url}/mcp", http_client=http)) as client:
        assert "chat" in [tool.name for tool in (await client.list_tools()).tools]
        asked = SHORT | {"prompt": "What is the capital of France?"}
        answer = await client.call_tool("chat", asked)
        assert answer.content[0].text
        names = ["starter", "gpt-4o-mini"]
        (compared,) = (await client.call_tool("compare", asked | {"models": names})).content
        assert json.loads(compared.text) == [{"model": name, "answer": answer.content[0].text} for name in names]
        prompts = [asked["prompt"], "Say yes."]
        (batch,) = (await client.call_tool("batch_prompts", SHORT | {"prompts": prompts})).content
        first, second = json.loads(batch.text)
        assert first == {"prompt": prompts[0], "answer": answer.content[0].text}
        assert second["answer"]
        refused = await client.call_tool("chat", asked | {"model": "nobody"})
        assert refused.is_error
        assert "there is no model 'nobody'" in refused.content[0].text
        status = await client.read_resource("meshnode://status")
        assert "subsystems" in status.contents[0].text
        (model,) = json.loads((await client.read_resource("meshnode://models")).contents[0].text)
        assert (model["name"], model["loaded"]) == ("smollm2-135m-instruct", True)
        (mesh,) = (await client.call_tool("mesh_status", {})).content
        assert json.loads(mesh.text) == {"peers": [], "models": [model]}
