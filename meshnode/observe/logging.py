"""Structured logs: structlog in front, the standard library behind, so that libraries' records look like ours.

For people on a terminal, one JSON object per line otherwise. Bearer keys never reach a log, wherever in a record they stand.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

__all__ = ["REDACTED", "configure_logging", "redact"]

REDACTED = "[redacted]"

# "Bearer abcdefgh", "Authorization: Bearer abc", "authorization=abc", "x-api-key: abc", "'api_key': 'abc'",
# "(b'x-api-key', b'abc')"
_SECRET_TEXT = re.compile(
    r"(?i)(\bbearer\s+(?=\S{8})"
    r"|\b(?:x-api-key|api[_-]?key|authorization)(?:[\"']?\s*[:=]|[\"']\s*,)\s*(?:b?[\"'])?(?:bearer\s+|basic\s+)?)"
    r"[A-Za-z0-9._~+/=-]+"
)
_SECRET_NAMES = frozenset(
    {
        "authorization",
        "proxy_authorization",
        "api_key",
        "apikey",
        "x_api_key",
        "password",
        "secret",
        "cookie",
        "set_cookie",
    }
)
_DEEPEST = 6  # nesting beyond this is not looked into, but cut off


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace every secret in a record: values under a secret's name, and keys inside texts, at any depth."""
    return {name: _clean(name, value, 0) for name, value in event.items()}


def _clean(name: object, value: object, depth: int) -> object:
    if _is_secret(name):
        return REDACTED
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return _SECRET_TEXT.sub(rf"\g<1>{REDACTED}", value)
    if isinstance(value, bytes):
        return _clean(None, value.decode("utf-8", "replace"), depth)
    if depth >= _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {_clean(None, _text(key), depth): _clean(key, inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 2 and _is_secret(value[0]):  # a header as (name, value)
            return [_text(value[0]), REDACTED]
        return [_clean(None, inner, depth + 1) for inner in value]
    return _clean(None, str(value), depth)  # an exception, a set, a value of ours: its text may quote a key


def _is_secret(name: object) -> bool:
    return isinstance(name, str | bytes) and _text(name).lower().replace("-", "_") in _SECRET_NAMES


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def configure_logging(level: str, *, json: bool | None = None, stream: TextIO | None = None) -> None:
    """Send all records at or above `level` to `stream` (standard error unless told).

    `json` None means: JSON lines unless the stream is a terminal. Calling it again replaces the earlier settings.
    """
    out = stream if stream is not None else sys.stderr
    as_json = not out.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if as_json
        else structlog.processors.TimeStamper("%H:%M:%S"),
    ]
    # Tracebacks become text before redaction, so that a key in an exception's message is caught too.
    rendering: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        redact,
    ]
    if as_json:
        rendering.append(structlog.processors.JSONRenderer(default=str, ensure_ascii=False))
    else:
        rendering.append(structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0))
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    for chatty in ("hypercorn.access", "httpx", "httpcore"):  # we write our own line per request
        logging.getLogger(chatty).setLevel(logging.WARNING)
