"""What the head of every answer says, whoever made it."""

from collections.abc import Mapping

from meshnode.types.ids import RequestId

__all__ = ["common_headers", "must_close"]

_BEFORE_BODY = (401, 403, 404, 405, 408, 413, 415, 429)  # what may be said before all of a body was read
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def common_headers(request: RequestId) -> Mapping[str, str]:
    """Return the request's id, by OpenAI's name and by Anthropic's, and what a browser must not do with an answer."""
    return {"x-request-id": request, "request-id": request, **_SECURITY}


def must_close(status: int, method: str, http_version: str) -> bool:
    """Whether a refusal ends its connection: what is left of the body would be taken for the next request."""
    return status in _BEFORE_BODY and method not in ("GET", "HEAD") and http_version.startswith("1")
