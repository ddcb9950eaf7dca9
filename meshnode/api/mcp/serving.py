"""The protocol's own part, by the official SDK: what it is told, and how it is run. Imported when somebody asks for it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import msgspec
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError

from meshnode import __version__
from meshnode.api.accounts import own_account
from meshnode.api.failures import failure_of
from meshnode.api.mcp.tools import TOOLS, UnknownTool, call_tool
from meshnode.api.ports import ApiDependencies
from meshnode.errors import MeshnodeError

__all__ = ["ASGI", "open_sessions"]

ASGI = Callable[[Any, Any, Any], Awaitable[None]]

_STATUS, _MODELS = "meshnode://status", "meshnode://models"
_INVALID_PARAMETERS, _NO_RESOURCE = -32602, -32002  # error codes of the protocol
_MAX_SESSIONS = 256
_INSTRUCTIONS = "Language models on this machine and its mesh. `models` lists them; `chat` asks one."


@asynccontextmanager
async def open_sessions(dependencies: ApiDependencies) -> AsyncIterator[ASGI]:
    """Yield an ASGI callable that serves the protocol. Leaving, by cancellation too, ends every session."""
    manager = StreamableHTTPSessionManager(
        _server(dependencies), max_sessions=_MAX_SESSIONS, max_request_body_size=dependencies.body_limit_bytes
    )
    async with manager.run():
        yield manager.handle_request


def _server(dependencies: ApiDependencies) -> "Server[Any]":
    async def list_tools(_context: Any, _asked: Any) -> types.ListToolsResult:  # noqa: ANN401
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name,
                    description=tool.description,
                    input_schema=tool.schema,
                    annotations=types.ToolAnnotations(read_only_hint=tool.reads_only, open_world_hint=False),
                )
                for tool in TOOLS
            ]
        )

    async def run_tool(_context: Any, asked: types.CallToolRequestParams) -> types.CallToolResult:  # noqa: ANN401
        try:
            return _result(await call_tool(asked.name, asked.arguments, dependencies))
        except UnknownTool as error:
            raise MCPError(_INVALID_PARAMETERS, str(error)) from error
        except MeshnodeError as error:  # a model reads it and tries something else
            own_account().fail(failure_of(error))
            return types.CallToolResult(content=[types.TextContent(type="text", text=str(error))], is_error=True)

    async def list_resources(_context: Any, _asked: Any) -> types.ListResourcesResult:  # noqa: ANN401
        return types.ListResourcesResult(
            resources=[
                types.Resource(
                    name="status", uri=_STATUS, description="State of this node.", mime_type="application/json"
                ),
                types.Resource(name="models", uri=_MODELS, description="Models to ask.", mime_type="application/json"),
            ]
        )

    async def read_resource(_context: Any, asked: types.ReadResourceRequestParams) -> types.ReadResourceResult:  # noqa: ANN401
        tool = {_STATUS: "node_info", _MODELS: "models"}.get(asked.uri)
        if tool is None:
            raise MCPError(_NO_RESOURCE, f"there is no resource {asked.uri[:80]!r}; there are: {_STATUS}, {_MODELS}")
        text = msgspec.json.encode(await call_tool(tool, None, dependencies)).decode()
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=asked.uri, mime_type="application/json", text=text)]
        )

    return Server(
        "meshnode",
        version=__version__,
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=run_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
    )


def _result(value: object) -> types.CallToolResult:
    if isinstance(value, str):
        return types.CallToolResult(content=[types.TextContent(type="text", text=value)])
    plain = msgspec.to_builtins(value)
    text = msgspec.json.encode(plain).decode()
    structured = plain if isinstance(plain, dict) else {"items": plain}
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=structured)
