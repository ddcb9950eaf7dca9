"""Replies that are whole when they are sent: JSON values and refusals."""

import math
from collections.abc import Callable, Mapping

import msgspec
from quart import Response

from meshnode.api.failures import Failure, failure_body

__all__ = ["error_body", "json_reply", "ollama_error", "refusal_reply"]


def ollama_error(failure: Failure) -> bytes:
    """Return Ollama's error object as JSON."""
    return msgspec.json.encode({"error": failure.message})


_SHAPES: Mapping[str, Callable[[Failure], bytes]] = {
    "/api/admin/": failure_body,
    "/api/": ollama_error,
}
"""Beginnings of paths, the first that fits counts: whose shape an error has. All others have OpenAI's."""


def error_body(failure: Failure, path: str) -> bytes:
    """Return the error object that clients of a path know, as JSON."""
    shape = next((shape for beginning, shape in _SHAPES.items() if path.startswith(beginning)), failure_body)
    return shape(failure)


def json_reply(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as JSON."""
    given = None if headers is None else dict(headers)
    return Response(msgspec.json.encode(value), status=status, content_type="application/json", headers=given)


def refusal_reply(failure: Failure, path: str) -> Response:
    """Return the error object that clients of a path know, with the headers that belong to its status."""
    response = Response(error_body(failure, path), status=failure.status, content_type="application/json")
    if failure.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after)))
    if failure.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
