"""What a route says of itself: what it takes, how it answers. Handlers live by it, and the OpenAPI document is made of it."""

import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

import attrs
import msgspec
from quart import Response, request

from meshnode.api.bodies import JSON, WrongValue, named, read_json

__all__ = ["JSON", "Operation", "describes", "operation_of", "takes"]

_ATTRIBUTE = "meshnode_operation"
_Body = TypeVar("_Body", bound=msgspec.Struct)
_View = TypeVar("_View", bound=Callable[..., Any])


@attrs.frozen
class Operation:
    """One method of one path."""

    summary: str
    body: type[msgspec.Struct] | None = None
    answers: tuple[str, ...] = (JSON,)  # content types of a good answer
    status: int = 200  # of a good answer
    query: Mapping[str, Mapping[str, object]] = attrs.field(factory=dict)  # parameter: JSON Schema


def describes(operation: Operation) -> Callable[[_View], _View]:
    """Attach the description of a handler without a body."""

    def attach(view: _View) -> _View:
        setattr(view, _ATTRIBUTE, operation)
        return view

    return attach


def takes(
    body: type[_Body],
    summary: str,
    *,
    timeout: float,
    answers: tuple[str, ...] = (JSON,),
    status: int = 200,
    wrong: WrongValue = named,
    types: Collection[str] = (JSON, ""),
) -> Callable[[Callable[..., Awaitable[Response]]], Callable[..., Awaitable[Response]]]:
    """Give a handler the request's body, decoded, as its first argument; it has `timeout` seconds to arrive.

    `wrong` says what is wrong with a value in the words of the surface; `types` are the content types it may
    have. What `read_json` raises, the view raises.
    """

    def attach(handler: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        @functools.wraps(handler)
        async def view(**path: str) -> Response:
            return await handler(await read_json(request, body, timeout=timeout, wrong=wrong, types=types), **path)

        return describes(Operation(summary, body, answers, status))(view)

    return attach


def operation_of(view: Callable[..., Any]) -> Operation | None:
    """Return the description of a view, if it has one."""
    found = getattr(view, _ATTRIBUTE, None)
    return found if isinstance(found, Operation) else None
