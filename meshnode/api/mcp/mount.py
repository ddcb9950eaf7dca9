"""Puts the protocol beside the application: /mcp goes to the SDK, everything else to Quart, and both through the same guards."""

import importlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import trio
from werkzeug.datastructures import Headers
from werkzeug.http import parse_options_header

from meshnode.api.accounts import own_account
from meshnode.api.bodies import JSON, check_nesting, too_large, too_late, wrong_type
from meshnode.api.failures import Failure, describe, failure_of
from meshnode.api.guards import Guards
from meshnode.api.heads import must_close
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import refusal_reply
from meshnode.errors import RequestError

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
            failure = describe(501, "MCP is an extra of this node; run: pip install 'meshnode[mcp]'")
            await _refuse(failure, scope, send)
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
    dependencies: ApiDependencies

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's own types
        """Serve one request."""
        if scope["path"] not in _PATHS:
            await self.inner(scope, receive, send)
            return
        headers = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]])
        own_account().endpoint = _PATHS[0]
        client = (scope.get("client") or ("unknown",))[0]
        failure = self.guards.refusal(path=scope["path"], headers=headers, client=client)
        if failure is None and scope["method"] == "POST":
            failure, receive = await self._with_body(headers, receive)
        if failure is None:
            await self.surface.serve(scope, receive, send)
        else:
            await _refuse(failure, scope, send)

    async def _with_body(self, headers: Headers, receive: Any) -> tuple[Failure | None, Any]:  # noqa: ANN401
        """Read the body, which the SDK would wait for without end; return why it is refused, or what gives it again."""
        kind, limit = parse_options_header(headers.get("Content-Type"))[0], self.dependencies.body_limit_bytes
        if kind != JSON:
            return describe(415, wrong_type(kind)), receive
        body = bytearray()
        message: dict[str, Any] = {"more_body": True}
        with trio.move_on_after(self.dependencies.body_timeout) as scope:
            while message.get("more_body", False) and len(body) <= limit:  # a client that leaves sends no more
                message = await receive()
                body += message.get("body", b"")
        if scope.cancelled_caught:
            return describe(408, too_late(self.dependencies.body_timeout)), receive
        if len(body) > limit:
            return describe(413, too_large(limit)), receive
        try:
            check_nesting(bytes(body))
        except RequestError as error:
            return failure_of(error), receive
        again = [message] if message["type"] == "http.disconnect" else [message | {"body": bytes(body)}]

        async def replayed() -> Any:  # noqa: ANN401
            return again.pop() if again else await receive()

        return None, replayed


async def _refuse(failure: Failure, scope: Mapping[str, Any], send: Any) -> None:  # noqa: ANN401
    account = own_account()
    account.fail(failure)
    reply = refusal_reply(failure, scope["path"], account.id)
    if must_close(failure.status, scope["method"], scope["http_version"]):
        reply.headers["Connection"] = "close"
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    await send({"type": "http.response.start", "status": reply.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": await reply.get_data(as_text=False)})
