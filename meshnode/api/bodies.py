"""Reads and decodes JSON bodies under limits."""

import json
import re
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
import trio
from quart import Request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout, UnsupportedMediaType

from meshnode.errors import RequestError
from meshnode.text.depth import check_depth, nesting

__all__ = [
    "JSON",
    "WrongValue",
    "check_nesting",
    "decode_json",
    "json_text",
    "named",
    "parts_of",
    "read_json",
    "too_large",
    "too_late",
    "wrong_type",
]

JSON = "application/json"
_MAX_DEPTH = 400  # levels of a body: what is decoded can be encoded again, by calls that stand deeper in the stack
# Objects and lists of a body, which can have four million: the garbage collector goes over them for seconds.
_MAX_NESTED = 100_000

T = TypeVar("T")
WrongValue = Callable[[str], RequestError]
"""Makes a refusal of what msgspec says of a value that is not of its type."""
_UNKNOWN_FIELD = re.compile("contains unknown field `(.+)`")
_MISSING_FIELD = re.compile("missing required field `(.+)`")


def parts_of(text: str) -> tuple[str, str]:
    """Return what msgspec finds wrong, without the field's name, and that field's path.

    msgspec says "what - at `$.path`", and of an unknown or missing field only the object it stands in.
    """
    message, _, path = text.partition(" - at `$")
    param = path.rstrip("`").lstrip(".")
    if (unknown := _UNKNOWN_FIELD.search(message)) is not None:
        return "is not supported by this node", f"{param}.{unknown[1]}".lstrip(".")
    if (missing := _MISSING_FIELD.search(message)) is not None:
        return "is needed and not there", f"{param}.{missing[1]}".lstrip(".")
    return message, param


def named(text: str, inside: str = "") -> RequestError:
    """Name the field as JavaScript and Python would reach it, `messages[0].content`, in the part of a body called `inside`."""
    message, param = parts_of(text)
    param = ".".join(part for part in (inside, param) if part)
    if message.startswith("is "):
        return RequestError(f"{param!r} {message}", param=param)
    return RequestError(f"{message} (at {param})" if param else message, param=param or None)


async def read_json(
    request: Request, kind: type[T], *, timeout: float, wrong: WrongValue = named, types: Collection[str] = (JSON, "")
) -> T:
    """Read the body and decode it as `kind`. Its content type is one of `types`.

    Raises RequestError naming the line of malformed JSON or the field of a wrong value, and werkzeug's 408, 413 and 415.
    """
    if request.mimetype not in types:
        raise UnsupportedMediaType(wrong_type(request.mimetype))
    with trio.move_on_after(timeout) as scope:
        raw: bytes = await request.get_data(as_text=False)  # type: ignore[assignment]  # bytes, when not as text
    if scope.cancelled_caught:
        raise RequestTimeout(too_late(timeout))
    limit = request.max_content_length
    if limit is not None and len(raw) > limit:
        raise RequestEntityTooLarge
    return decode_json(raw, kind, wrong=wrong)


def wrong_type(given: str) -> str:
    """Return why a body of that content type is refused."""
    return f"the body must be {JSON}, not {given or 'of no type'}"


def too_late(timeout: float) -> str:
    """Return why a body that does not end is refused."""
    return f"the body did not arrive within {timeout:.0f} s"


def too_large(limit: int | None) -> str:
    """Return why a body beyond the limit is refused."""
    return f"the body is larger than {limit} bytes; the limit is api.body_limit_bytes"


def check_nesting(raw: bytes) -> None:
    """Raise RequestError for a body that is nested too deeply, or would keep everybody waiting while it is decoded."""
    if raw.count(b"{") + raw.count(b"[") <= _MAX_DEPTH:
        return
    count, depth = nesting(raw)
    if depth > _MAX_DEPTH:
        raise RequestError(f"the body is nested too deeply, more than {_MAX_DEPTH} levels")
    if count > _MAX_NESTED:
        raise RequestError(f"the body has {count} objects and lists; {_MAX_NESTED} are allowed")


def decode_json(raw: bytes, kind: type[T], *, wrong: WrongValue = named) -> T:
    """Decode; the sentence says where it went wrong."""
    check_nesting(raw)
    try:
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.ValidationError as error:
            msgspec.json.decode(raw, type=msgspec.Raw)  # a body that breaks off has first of all done that
            raise wrong(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {_what_and_where(raw, error)}") from error


def json_text(value: object, what: str, param: str | None = None) -> str:
    """Return a part of a body as the text it was; `what` names it. Raises RequestError for one that is nested too deeply."""
    text = msgspec.json.encode(value).decode()
    check_depth(text, what, param)
    return text


def _what_and_where(raw: bytes, error: Exception) -> str:
    """Say what is wrong with text that is not JSON, and at which line and column where that can be found out."""
    digits = str(error).rpartition("byte ")[2].rstrip(")")
    if not isinstance(error, UnicodeDecodeError) and digits.isdecimal():
        what = str(error).partition(": ")[2].partition(" (byte")[0] or str(error)
        return f"{what} at {_place(raw, int(digits))}"
    try:  # msgspec does not say where; the standard library is slower and does
        json.loads(raw.decode())
    except UnicodeDecodeError as wrong:
        return f"it is not UTF-8 at {_place(raw, wrong.start)}"
    except json.JSONDecodeError as wrong:
        return f"{wrong.msg.removesuffix(' at')} at line {wrong.lineno}, column {wrong.colno}"
    return "it has an escape for half a character"  # a lone surrogate, which the standard library lets pass


def _place(raw: bytes, at: int) -> str:
    before = raw[:at]
    return f"line {before.count(10) + 1}, column {len(before) - before.rfind(10)}"
