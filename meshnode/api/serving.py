"""Serves an ASGI app with hypercorn's protocol code and our own accept loop.

hypercorn 0.18 on Trio has three faults that this file cures; `tests/api/test_serving.py` tells when they are gone:
its shielded send has no deadline, so a client that does not read pins its handler for ever and hangs the shutdown; under
quart-trio the end of a response cancels the call that re-arms the keep-alive timer; and its serve function starts a lifespan,
where background work would hide from our supervisor.
"""

import socket
from collections.abc import Sequence
from typing import Any

import attrs
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGISendCallable
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

__all__ = ["HTTPConnection", "ServingLimits", "serve_api"]


@attrs.frozen
class ServingLimits:
    """Times in seconds."""

    write_timeout: float  # how long a client may leave its window closed
    keep_alive_timeout: float  # how long a connection may idle between requests
    max_connections: int  # open at once; more wait in the listen queue
    graceful_timeout: float  # how long open connections may go on once draining begins


class HTTPConnection(TrioASGIHTTPConnection):
    """Shields the last body message, whose sending re-arms the keep-alive timer, from the cancellation it causes."""

    async def __call__(self, receive: Any, send: ASGISendCallable) -> None:  # noqa: ANN401  # hypercorn's type
        """Handle one request."""

        async def shielded(message: Any) -> None:  # noqa: ANN401
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.CancelScope(shield=True):
                    await send(message)
            else:
                await send(message)

        await super().__call__(receive, shielded)


class _Connection(TCPServer):
    """One connection whose writes have a deadline."""

    write_timeout: float

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                with trio.fail_after(self.write_timeout) as scope:
                    scope.shield = True
                    await self.stream.send_all(event.data)
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())


async def serve_api(
    app: QuartTrio,
    listeners: Sequence[trio.SocketListener],
    limits: ServingLimits,
    *,
    draining: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `draining` is set, then accept no more, let open requests end within graceful_timeout, and return.

    Cancellation closes everything at once. The listeners stay open: they belong to the caller.
    """
    app.asgi_http_class = HTTPConnection
    config = Config()
    config.keep_alive_timeout = limits.keep_alive_timeout
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = 1 << 16
    config.include_server_header = False
    context = WorkerContext(None)
    wrapped = wrap_app(app, config.wsgi_max_body_size, None)
    room = trio.Semaphore(limits.max_connections)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            connection = _Connection(wrapped, config, context, {}, stream)  # type: ignore[arg-type]  # plain TCP is fine too
            connection.write_timeout = limits.write_timeout
            await connection.run()
        finally:
            stream.socket.close()  # hypercorn's own close does not get there when it is cancelled
            room.release()

    async def accept(listener: trio.SocketListener, connections: trio.Nursery) -> None:
        while True:
            await room.acquire()
            try:
                stream = await listener.accept()
            except BaseException:
                room.release()
                raise
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel's own limit on unacknowledged data, a second belt
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.write_timeout * 1000))
            connections.start_soon(_contained, handle, stream)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(accept, listener, connections)
            task_status.started()
            await draining.wait()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + limits.graceful_timeout


async def _contained(handle: Any, stream: trio.SocketStream) -> None:  # noqa: ANN401
    """Keep a broken connection from taking the others with it."""
    try:
        await handle(stream)
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, AssertionError, RuntimeError):
        pass  # hypercorn's state machine objects when a client vanishes in the middle of an exchange
