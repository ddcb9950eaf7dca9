"""Errors as Anthropic's clients know them (https://docs.anthropic.com/en/api/errors)."""

from collections.abc import Mapping

import msgspec

from meshnode.api.failures import Failure

__all__ = ["anthropic_error", "anthropic_status"]

_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_CODES = {"thread": "thread_unsupported_request"}
"""Refused fields whose code makes clients go on without them: the SDK's runner of tools would rather have servers keep the
conversation, and sends all of it when it learns that they do not."""


def anthropic_status(failure: Failure) -> int:
    """Return the status: a full queue is an overloaded server there, not a client's rate."""
    return 529 if failure.code == "overloaded" else failure.status


def anthropic_error(failure: Failure, request: str = "") -> bytes:
    """Return the error object as JSON, with the id of the request if there is one."""
    status = anthropic_status(failure)
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error: dict[str, object] = {"type": kind, "message": failure.message}
    if failure.param in _CODES:
        error["details"] = {"error_code": _CODES[failure.param]}
    return msgspec.json.encode({"type": "error", "error": error, **({"request_id": request} if request else {})})
