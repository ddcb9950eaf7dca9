"""The one mapping from exceptions to HTTP: status, OpenAI error type and code."""

from collections.abc import Mapping

import attrs
import msgspec

from meshnode import errors

__all__ = ["STATUSES", "Failure", "describe", "failure_body", "failure_of"]


@attrs.frozen
class Failure:
    """An error as a client sees it."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    retry_after: float | None = None  # seconds


_OURS, _THEIRS, _RATE = "server_error", "invalid_request_error", "rate_limit_error"

STATUSES: Mapping[type[errors.MeshnodeError], tuple[int, str]] = {
    errors.ConfigError: (500, _OURS),
    errors.StoreError: (500, _OURS),
    errors.WireError: (502, _OURS),
    errors.FrameTooLarge: (502, _OURS),
    errors.UnknownMessage: (502, _OURS),
    errors.VersionMismatch: (502, _OURS),
    errors.PeerError: (502, _OURS),
    errors.PeerUnreachable: (502, _OURS),
    errors.PeerRefused: (502, _OURS),
    errors.PeerMisbehaved: (502, _OURS),
    errors.FileError: (500, _OURS),
    errors.ShardCorrupt: (500, _OURS),
    errors.SourceUnavailable: (502, _OURS),
    errors.UnsupportedModel: (422, _THEIRS),
    errors.InvalidModelFile: (422, _THEIRS),
    errors.EngineError: (500, _OURS),
    errors.OutOfMemory: (503, _OURS),
    errors.DeviceLost: (503, _OURS),
    errors.WorkerLost: (503, _OURS),
    errors.RingBroken: (503, _OURS),
    errors.InferenceError: (500, _OURS),
    errors.NoRoute: (503, _OURS),
    errors.SessionLost: (503, _OURS),
    errors.Overloaded: (429, _RATE),
    errors.DeadlineExceeded: (504, _OURS),
    errors.RequestError: (400, _THEIRS),
    errors.UnknownModel: (404, _THEIRS),
    errors.UnknownResponse: (404, _THEIRS),
    errors.LastCopy: (409, _THEIRS),
    errors.ContextOverflow: (400, _THEIRS),
    errors.GrammarRefused: (400, _THEIRS),
    errors.BadRows: (502, _OURS),
    errors.EconomyError: (500, _OURS),
    errors.PoolError: (403, _THEIRS),
    errors.UpdateError: (500, _OURS),
    errors.ReleaseRefused: (502, _OURS),
    errors.UpdateUnavailable: (502, _OURS),
    errors.UpdateBlocked: (409, _THEIRS),
    errors.Unavailable: (503, _OURS),
    errors.Fatal: (500, _OURS),
}
"""Every class of `meshnode.errors`; one from elsewhere, such as the supervisor's, has its nearest base's, or is a 500."""

_RETRY = {
    errors.OutOfMemory: 1.0,
    errors.DeviceLost: 1.0,
    errors.WorkerLost: 1.0,
    errors.RingBroken: 1.0,
    errors.SessionLost: 1.0,
    errors.Unavailable: 1.0,
}
"""Seconds after which the same request may well succeed."""


def failure_of(error: errors.MeshnodeError) -> Failure:
    """Map an exception."""
    status, kind = next((STATUSES[base] for base in type(error).__mro__ if base in STATUSES), (500, _OURS))
    retry = error.retry_after if isinstance(error, errors.Overloaded) else _RETRY.get(type(error))
    param = error.param if isinstance(error, errors.RequestError) else None
    return Failure(status, kind, error.code, str(error), param, retry)


def failure_body(failure: Failure) -> bytes:
    """Return OpenAI's error object as JSON."""
    return msgspec.json.encode(
        {"error": {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}}
    )


_REASONS: Mapping[int, tuple[str, str]] = {
    400: (_THEIRS, "bad_request"),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: (_THEIRS, "not_found"),
    405: (_THEIRS, "method_not_allowed"),
    408: (_THEIRS, "request_timeout"),
    413: (_THEIRS, "request_too_large"),
    415: (_THEIRS, "unsupported_media_type"),
    429: (_RATE, "rate_limit_exceeded"),
    431: (_THEIRS, "head_too_large"),
    501: (_OURS, "not_implemented"),
}


def describe(status: int, message: str, *, retry_after: float | None = None) -> Failure:
    """Return the failure of a refusal that has no exception class of ours."""
    kind, code = _REASONS.get(status, (_OURS if status >= 500 else _THEIRS, "internal" if status >= 500 else "refused"))
    return Failure(status, kind, code, message, None, retry_after)
