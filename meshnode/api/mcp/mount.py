"""Puts the protocol beside the application: /mcp goes to the SDK, everything else to Quart, and both through the same guards."""

import importlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import trio
from werkzeug.datastructures import Headers

from meshnode.api.failures import Failure, describe, failure_body
from meshnode.api.guards import Guards
from meshnode.api.ports import ApiDependencies

__all__ = ["McpMount", "McpSurface"]

_PATHS = ("/mcp", "/mcp/")
_ASGI = Callable[[Any, Any, Any], Awaitable[None]]


@attrs.define(eq=False)
class McpSurface:
    """The SDK, once somebody has asked for it: it takes most of a second to import."""

    dependencies: ApiDependencies
    _wanted: trio.Event = attrs.field(factory=trio.Event, init=False)
    _settled: trio.Event = attrs.field(factory=trio.Event, init=False)
    _serve: _ASGI | None = attrs.field(default=None, init=False)
    _in_hand: int = attrs.field(default=0, init=False)  # requests with an answer to come
    _idle: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self, draining: trio.Event) -> None:
        """Serve sessions from the first request on, until cancelled, or all is answered and `draining` set; then they end."""
        await self._wanted.wait()
        try:
            open_sessions = await trio.to_thread.run_sync(_import_serving)
        except ImportError:
            self._settled.set()
            return
        async with open_sessions(self.dependencies) as self._serve:
            self._settled.set()
            await draining.wait()
            while self._in_hand:  # the streams of idle sessions are not waited for
                self._idle = trio.Event()
                await self._idle.wait()

    async def serve(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's own types
        """Serve one request."""
        if (serve := await self._handler()) is None:
            await _refuse(describe(501, "MCP is an extra of this node; run: pip install 'meshnode[mcp]'"), send)
            return
        asks = scope["method"] == "POST"
        self._in_hand += asks
        try:
            await serve(scope, receive, send)
        finally:
            self._in_hand -= asks
            if not self._in_hand:
                self._idle.set()

    async def _handler(self) -> _ASGI | None:
        """Return what serves requests, or None where the extra is not installed."""
        self._wanted.set()
        await self._settled.wait()
        return self._serve


def _import_serving() -> Callable[[ApiDependencies], AbstractAsyncContextManager[_ASGI]]:
    module = importlib.import_module("meshnode.api.mcp.serving")
    opener: Callable[[ApiDependencies], AbstractAsyncContextManager[_ASGI]] = module.open_sessions
    return opener


@attrs.frozen(eq=False)
class McpMount:
    """An ASGI application in front of another."""

    inner: _ASGI
    guards: Guards
    surface: McpSurface

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's own types
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] not in _PATHS:
            await self.inner(scope, receive, send)
            return
        headers = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])
        client = (scope.get("client") or ("unknown",))[0]
        failure = self.guards.refusal(path=scope["path"], headers=headers, client=client)
        if failure is not None:
            await _refuse(failure, send)
        else:
            await self.surface.serve(scope, receive, send)


async def _refuse(failure: Failure, send: Any) -> None:  # noqa: ANN401
    body = failure_body(failure)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if failure.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if failure.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(failure.retry_after))).encode()))
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
