"""Ask a node through MCP, with the official SDK.

MESHNODE_API_KEY=$(meshnode token) python examples/mcp_client.py [PROMPT]
"""

import os
import sys

import httpx2
import trio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def ask(prompt: str) -> None:
    node, key = os.environ.get("MESHNODE_URL", "http://127.0.0.1:8800"), os.environ["MESHNODE_API_KEY"]
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=120)
    async with Client(streamable_http_client(f"{node}/mcp", http_client=http)) as client:
        print("tools:", ", ".join(tool.name for tool in (await client.list_tools()).tools))
        answer = await client.call_tool("chat", {"prompt": prompt, "temperature": 0, "max_tokens": 100})
        print(answer.content[0].text)


def main() -> None:
    trio.run(ask, " ".join(sys.argv[1:]) or "What is the capital of France?")


if __name__ == "__main__":
    main()
