"""The API's sockets: bound before anything else starts, and kept while the API server comes and goes."""

import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from meshnode.errors import ConfigError

__all__ = ["BoundSockets", "bind"]


@attrs.frozen
class BoundSockets:
    """Listening sockets that outlive whoever serves them."""

    sockets: Sequence[trio.socket.SocketType]

    @property
    def port(self) -> int:
        """The port of the first socket: the one that was asked for, or the one the system chose for port 0."""
        return int(self.sockets[0].getsockname()[1])

    def listeners(self) -> list[trio.SocketListener]:
        """Return listeners for one incarnation of a server; closing them leaves the sockets open."""
        return [trio.SocketListener(each.dup()) for each in self.sockets]


@asynccontextmanager
async def bind(host: str, port: int) -> AsyncIterator[BoundSockets]:
    """Listen on `host` and `port` until the context is left. Raises ConfigError in one line when that is not possible."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except (OSError, ExceptionGroup) as error:
        raise ConfigError(_refusal(host, port, error)) from error
    try:
        yield BoundSockets([listener.socket for listener in listeners])
    finally:
        for listener in listeners:
            listener.socket.close()


def _refusal(host: str, port: int, error: OSError | ExceptionGroup[Exception]) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another program; choose another with --port"
    if number == errno.EACCES:
        return f"port {port} on {host} needs more rights than this process has; choose one above 1023 with --port"
    if isinstance(error, socket.gaierror) or number == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; choose another with --host"
    return f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
