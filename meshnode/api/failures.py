"""The one mapping from exceptions to HTTP: status, OpenAI error type and code."""

from collections.abc import Mapping

import attrs
import msgspec

from meshnode import errors

__all__ = ["Failure", "describe", "failure_body", "failure_of"]


@attrs.frozen
class Failure:
    """An error as a client sees it."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    retry_after: float | None = None  # seconds


_STATUSES: dict[type[errors.MeshnodeError], tuple[int, str]] = {
    errors.MeshnodeError: (500, "server_error"),
    errors.ConfigError: (500, "server_error"),
    errors.StoreError: (500, "server_error"),
    errors.WireError: (502, "server_error"),
    errors.PeerError: (502, "server_error"),
    errors.FileError: (500, "server_error"),
    errors.SourceUnavailable: (502, "server_error"),
    errors.UnsupportedModel: (422, "invalid_request_error"),
    errors.InvalidModelFile: (422, "invalid_request_error"),
    errors.EngineError: (500, "server_error"),
    errors.OutOfMemory: (503, "server_error"),
    errors.WorkerLost: (503, "server_error"),
    errors.InferenceError: (500, "server_error"),
    errors.NoRoute: (503, "server_error"),
    errors.SessionLost: (503, "server_error"),
    errors.Overloaded: (429, "rate_limit_error"),
    errors.DeadlineExceeded: (504, "server_error"),
    errors.RequestError: (400, "invalid_request_error"),
    errors.UnknownModel: (404, "invalid_request_error"),
    errors.Unavailable: (503, "server_error"),
}
"""By class; a class that is not here has its nearest base's."""

_RETRY = {errors.OutOfMemory: 1.0, errors.WorkerLost: 1.0, errors.SessionLost: 1.0, errors.Unavailable: 1.0}


def failure_of(error: errors.MeshnodeError) -> Failure:
    """Map an exception."""
    base = next(kind for kind in type(error).__mro__ if kind in _STATUSES)
    status, kind = _STATUSES[base]
    retry = error.retry_after if isinstance(error, errors.Overloaded) else _RETRY.get(type(error))
    param = error.param if isinstance(error, errors.RequestError) else None
    return Failure(status, kind, error.code, str(error), param, retry)


def failure_body(failure: Failure) -> bytes:
    """Return OpenAI's error object as JSON."""
    return msgspec.json.encode(
        {"error": {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}}
    )


_REASONS: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request_error", "bad_request"),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


def describe(status: int, message: str, *, retry_after: float | None = None) -> Failure:
    """Return the failure of a refusal that has no exception class of ours."""
    kind, code = _REASONS.get(status, ("server_error", "internal"))
    return Failure(status, kind, code, message, None, retry_after)
