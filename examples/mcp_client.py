"""Ask a node through MCP, with the official SDK: python examples/mcp_client.py KEY [PROMPT]."""

import sys

import httpx2
import trio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def ask(key: str, prompt: str) -> None:
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=120)
    async with Client(streamable_http_client("http://127.0.0.1:8800/mcp", http_client=http)) as client:
        print("tools:", ", ".join(tool.name for tool in (await client.list_tools()).tools))
        answer = await client.call_tool("chat", {"prompt": prompt, "temperature": 0})
        print(answer.content[0].text)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/mcp_client.py KEY [PROMPT]   (the key: meshnode token)")
    trio.run(ask, sys.argv[1], " ".join(sys.argv[2:]) or "What is the capital of France?")


if __name__ == "__main__":
    main()
