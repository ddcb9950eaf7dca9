"""The API's sockets: bound before anything else starts, and kept while the API server comes and goes."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from meshnode.errors import ConfigError

__all__ = ["bind", "bound_port"]


@asynccontextmanager
async def bind(host: str, port: int) -> AsyncIterator[list[trio.SocketListener]]:
    """Listen on `host` and `port` until the context is left. Raises ConfigError in one line when that is not possible.

    Servers accept from the listeners and leave them open, so that clients who come while a server is restarted wait in the
    system's queue for the next one.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except (OSError, ExceptionGroup) as error:
        raise ConfigError(_refusal(host, port, error)) from error
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()


def bound_port(listeners: list[trio.SocketListener]) -> int:
    """Return the port: the one that was asked for, or the one the system chose for port 0."""
    return int(listeners[0].socket.getsockname()[1])


def _refusal(host: str, port: int, error: OSError | ExceptionGroup[Exception]) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another program; choose another with --port"
    if number == errno.EACCES:
        return f"port {port} on {host} needs more rights than this process has; choose one above 1023 with --port"
    if isinstance(error, socket.gaierror) or number == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; choose another with --host"
    return f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
