"""One line of the log for each HTTP request, whoever answers it and however it ends.

It is written when the answer has been delivered, or the client has left, and has no text of the caller's.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from meshnode.api.accounts import opened
from meshnode.api.heads import common_headers
from meshnode.observe.metrics import Metrics
from meshnode.types.ids import new_request_id

__all__ = ["RequestLog"]

_LOOKS = "/api/admin/"  # the page asks for the node's state every two seconds
_LONGEST_PATH = 200  # characters

_ASGI = Callable[[Any, Any, Any], Awaitable[None]]


@attrs.frozen(eq=False)
class RequestLog:
    """An ASGI application in front of all others: what passes gets an id, the head that all answers have, a count and a line."""

    inner: _ASGI
    metrics: Metrics
    quiet: frozenset[str]  # paths of which only failures are worth a line

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's own types
        """Serve one request."""
        account = opened(new_request_id())
        status: int | None = None
        whole = False

        async def noted(message: dict[str, Any]) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = int(message["status"])
                self.metrics.api_requests_total.labels(route=account.endpoint, status=str(status)).inc()
                message = message | {"headers": _completed(message["headers"], common_headers(account.id))}
            # Known before it is sent: when the last has been, hypercorn reports a disconnect, and this may be cancelled.
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        method, path = scope["method"], scope["path"]
        try:
            await self.inner(scope, receive, noted)
        finally:
            looks = method in ("GET", "HEAD") and (path in self.quiet or path.startswith(_LOOKS))
            where = {"method": method, "path": path[:_LONGEST_PATH], "client": (scope.get("client") or ("unknown",))[0]}
            account.tell("request", whole=whole, quiet=looks and account.failure is None, status=status, **where)


def _completed(headers: list[tuple[bytes, bytes]], common: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Add the common headers, where the answer does not say something else."""
    own = {bytes(name).lower() for name, _ in headers}
    added = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in common.items()]
    return [*headers, *(header for header in added if header[0] not in own)]
