"""Reads and decodes JSON bodies under limits."""

from typing import TypeVar

import msgspec
import trio
from quart import Request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType

from meshnode.errors import RequestError

__all__ = ["decode_json", "read_json"]

T = TypeVar("T")


async def read_json(request: Request, kind: type[T], *, timeout: float) -> T:
    """Read the body and decode it as `kind`.

    Raises RequestError naming the line of malformed JSON or the field of a wrong value, and werkzeug's 408, 413 and 415.
    """
    if request.mimetype not in ("application/json", ""):
        raise UnsupportedMediaType(f"the body must be application/json, not {request.mimetype}")
    with trio.move_on_after(timeout) as scope:
        raw: bytes = await request.get_data(as_text=False)  # type: ignore[assignment]  # bytes, when not as text
    if scope.cancelled_caught:
        raise RequestTimeout(f"the body did not arrive within {timeout:.0f} s")
    limit = request.max_content_length
    if limit is not None and len(raw) > limit:
        raise RequestEntityTooLarge
    return decode_json(raw, kind)


def decode_json(raw: bytes, kind: type[T]) -> T:
    """Decode; the sentence says where it went wrong."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        message, _, path = text.partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        if "unknown field" in message:
            param = message.rsplit("`", 2)[-2]
            message = f"{param!r} is not supported here"
        raise RequestError(
            message + (f" (at {param})" if param and param not in message else ""), param=param
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}{_place(raw, str(error))}") from error
    except RecursionError as error:
        raise RequestError("the body is not valid JSON: it is nested too deeply") from error


def _place(raw: bytes, text: str) -> str:
    """Turn msgspec's byte position into a line and a column."""
    digits = text.rpartition("byte ")[2].rstrip(")")
    if not digits.isdecimal():
        return ""
    before = raw[: int(digits)]
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    return f" (line {line}, column {column})"
