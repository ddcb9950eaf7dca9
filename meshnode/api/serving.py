"""Serves an ASGI app with hypercorn's protocol code and our own accept loop.

hypercorn 0.18 on Trio has faults that this file and `http1` cure; `tests/api/test_upstream.py` tells when they are gone:
its shielded send has no deadline, so a client that does not read pins its handler for ever and hangs the shutdown; under
quart-trio the end of a response cancels the call that re-arms the keep-alive timer; its serve function starts a lifespan,
where background work would hide from our supervisor; and it speaks HTTP/2 to whoever asks, whose windows a client can keep
shut without the socket ever blocking, out of reach of a deadline on writes.
"""

import errno
import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, cast
from urllib.parse import urlsplit

import attrs
import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGISendCallable, ConnectionState
from hypercorn.utils import parse_socket_addr, wrap_app
from quart import Request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from meshnode.api.http1 import Http1

__all__ = ["HTTPConnection", "ServingLimits", "request_resources", "serve_api"]

_log = structlog.get_logger(__name__)
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_EXHAUSTED_PAUSE = 0.1  # seconds; what trio.serve_listeners waits
_RESOURCES = "meshnode.resources"


@attrs.frozen
class ServingLimits:
    """Times in seconds."""

    write_timeout: float  # how long a client may leave its window closed
    keep_alive_timeout: float  # how long a connection may idle between requests
    max_connections: int  # open at once; more wait in the listen queue
    graceful_timeout: float  # how long open connections may go on once draining begins


class HTTPConnection(TrioASGIHTTPConnection):
    """One request: shields the end of its response, and closes what it opened however it ends."""

    async def handle_request(self, nursery: trio.Nursery, request: Request, send: ASGISendCallable) -> None:  # type: ignore[override]  # quart-trio's own signature
        """Handle the request. Cancellation (the client left) closes the request's resources before it goes on."""

        async def shielded(message: Any) -> None:  # noqa: ANN401  # hypercorn's type
            # Sending the last message re-arms the keep-alive timer, and makes hypercorn report a disconnect, on which
            # quart-trio cancels this task in the middle of it.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.CancelScope(shield=True):
                    await send(message)
            else:
                await send(message)

        async with AsyncExitStack() as resources:
            cast("dict[str, object]", self.scope["extensions"])[_RESOURCES] = resources
            await super().handle_request(nursery, request, shielded)


def request_resources(request: Request) -> AsyncExitStack:
    """Return the stack that is closed when the request is over, also when its response was never begun.

    The body of a streamed response cannot do that itself: a generator that nobody started is not closed.
    """
    return cast("dict[str, AsyncExitStack]", request.scope["extensions"])[_RESOURCES]


class _Connection(TCPServer):
    """One connection whose writes have a deadline."""

    write_timeout: float
    scope: trio.CancelScope

    @property
    def is_idle(self) -> bool:
        """Whether no request is in hand: none has come whole, or the last has been answered."""
        return getattr(getattr(self, "protocol", None), "stream", None) is None

    async def run(self) -> None:
        """Serve until either side closes. Cancellation drops the connection at once."""
        line = self.stream.socket
        try:
            client = parse_socket_addr(line.family, line.getpeername())
            server = parse_socket_addr(line.family, line.getsockname())
            async with TaskGroup() as tasks:
                self._task_group = tasks
                state, send = ConnectionState(self.state), self.protocol_send
                self.protocol = Http1(  # type: ignore[assignment]  # what hypercorn's wrapper would choose from
                    self.app, self.config, self.context, tasks, state, False, client, server, send
                )
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
        finally:
            await self._close()

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

    Cancellation closes everything at once, but not the listeners: they belong to the caller, and outlive a crash. Draining closes
    them, since nobody will serve who comes then: they are refused at once, and do not wait in the backlog for the end.
    """
    config, context = _config(limits), WorkerContext(None)
    wrapped = wrap_app(_entry(app), config.wsgi_max_body_size, "asgi")
    room = trio.Semaphore(limits.max_connections)
    opened: dict[_Connection, None] = {}  # the oldest first

    async def handle(stream: trio.SocketStream) -> None:
        connection = _Connection(wrapped, config, context, {}, stream)  # type: ignore[arg-type]  # plain TCP is fine too
        connection.write_timeout, connection.scope = limits.write_timeout, trio.CancelScope()
        opened[connection] = None
        try:
            with connection.scope:
                await connection.run()
        except* Exception as group:  # noqa: BLE001  # a connection's rim: it must not take the others with it
            _report(group)
        finally:
            del opened[connection]
            stream.socket.close()  # hypercorn's own close does not get there when it is cancelled
            room.release()

    async def accept(listener: trio.SocketListener, connections: trio.Nursery) -> None:
        while True:
            stream = await _accept(listener)
            try:
                if not room.value and (idle := next((each for each in opened if each.is_idle), None)) is not None:
                    idle.scope.cancel()  # whoever asks goes before those who say nothing, or half of something
                await room.acquire()
            except BaseException:
                stream.socket.close()
                raise
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel's own limit on unacknowledged data, a second belt
                with suppress(OSError):  # the client has gone again
                    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.write_timeout * 1000))
            connections.start_soon(handle, stream)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(accept, listener, connections)
            task_status.started()
            await draining.wait()
            accepting.cancel_scope.cancel()
        for listener in listeners:
            await listener.aclose()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + limits.graceful_timeout


def _config(limits: ServingLimits) -> Config:
    config = Config()
    config.keep_alive_timeout = limits.keep_alive_timeout
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = 1 << 16
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn.error")  # its records go where all go, in our format
    return config


async def _accept(listener: trio.SocketListener) -> trio.SocketStream:
    """Accept, and wait while the process or the system has no descriptor left: connections that end will free one."""
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.warning("cannot accept connections", error=str(error))
            await trio.sleep(_EXHAUSTED_PAUSE)


def _entry(app: QuartTrio) -> Any:  # noqa: ANN401  # an ASGI callable
    """Give every request a path: Quart fails on a target without one (`?x`, `http://[`), which is taken for `/`."""

    async def entry(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        if not scope["path"].startswith("/"):
            try:
                scope["path"] = urlsplit(scope["path"]).path or "/"
            except ValueError:
                scope["path"] = "/"
        await app(scope, receive, send)

    return entry


def _report(group: ExceptionGroup) -> None:
    """Log what broke a connection: lost ones are everyday, anything else is worth a look."""
    lost = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError)
    _, odd = group.split(lost)
    if odd is not None:
        _log.warning("a connection ended badly", exc_info=odd)
