"""Replies that are whole when they are sent: JSON values and refusals."""

import math
from collections.abc import Mapping

import msgspec
from quart import Response

from meshnode.api.failures import Failure, failure_body

__all__ = ["json_reply", "refusal_reply"]


def json_reply(value: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as JSON."""
    given = None if headers is None else dict(headers)
    return Response(msgspec.json.encode(value), status=status, content_type="application/json", headers=given)


def refusal_reply(failure: Failure) -> Response:
    """Return OpenAI's error object, with the headers that belong to its status."""
    response = Response(failure_body(failure), status=failure.status, content_type="application/json")
    if failure.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after)))
    if failure.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
