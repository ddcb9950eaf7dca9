"""Replies that are whole when they are sent: JSON values and refusals."""

import math
from collections.abc import Callable, Mapping

import attrs
import msgspec
from quart import Response

from meshnode.api.anthropic.failures import anthropic_error, anthropic_status
from meshnode.api.failures import Failure, failure_body

__all__ = ["error_body", "json_reply", "ollama_error", "refusal_reply"]


def ollama_error(failure: Failure) -> bytes:
    """Return Ollama's error object as JSON."""
    return msgspec.json.encode({"error": failure.message})


@attrs.frozen
class _Shape:
    body: Callable[[Failure, str], bytes]  # of a failure and the id of the request
    status: Callable[[Failure], int] = lambda failure: failure.status


_OPENAI, _ANTHROPIC = _Shape(lambda failure, _request: failure_body(failure)), _Shape(anthropic_error, anthropic_status)
_SHAPES: Mapping[str, _Shape] = {
    "/v1/messages": _ANTHROPIC,
    "/api/admin/": _OPENAI,
    "/api/": _Shape(lambda failure, _request: ollama_error(failure)),
}
"""Beginnings of paths, the first that fits counts: whose shape an error has. All others have OpenAI's."""


def error_body(failure: Failure, path: str) -> bytes:
    """Return the error object that clients of a path know, as JSON."""
    return _shape(path).body(failure, "")


def _shape(path: str, *, is_anthropic: bool = False) -> _Shape:
    if is_anthropic and path.startswith("/v1/"):
        return _ANTHROPIC
    return next((shape for beginning, shape in _SHAPES.items() if path.startswith(beginning)), _OPENAI)


def json_reply(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as JSON."""
    given = None if headers is None else dict(headers)
    return Response(msgspec.json.encode(value), status=status, content_type="application/json", headers=given)


def refusal_reply(failure: Failure, path: str, request: str, *, is_anthropic: bool = False) -> Response:
    """Return the error object that clients of a path know, with the headers that belong to its status.

    Some paths are OpenAI's and Anthropic's: `is_anthropic` says whose client asks.
    """
    shape = _shape(path, is_anthropic=is_anthropic)
    response = Response(shape.body(failure, request), status=shape.status(failure), content_type="application/json")
    if failure.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after)))
    if failure.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
