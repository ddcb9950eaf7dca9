"""The official SDK's client of MCP against a real node."""

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

pytestmark = [pytest.mark.processes, pytest.mark.starter, pytest.mark.filterwarnings("ignore::ResourceWarning")]


async def test_a_model_is_asked_by_tool(node, key):
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
    async with Client(streamable_http_client(f"{node.url}/mcp", http_client=http)) as client:
        assert "chat" in [tool.name for tool in (await client.list_tools()).tools]
        asked = {"prompt": "What is the capital of France?", "max_tokens": 8, "temperature": 0}
        answer = await client.call_tool("chat", asked)
        assert answer.content[0].text
        refused = await client.call_tool("chat", asked | {"model": "nobody"})
        assert refused.is_error
        assert "there is no model 'nobody'" in refused.content[0].text
        status = await client.read_resource("meshnode://status")
        assert "subsystems" in status.contents[0].text
