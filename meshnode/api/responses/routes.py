"""The paths of Responses."""

from collections.abc import Mapping, Sequence
from typing import get_args

from quart import Response, g, request
from quart_trio import QuartTrio

from meshnode.api.operations import JSON, Operation, describes, takes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.responses.schemas import Include, ResponseRequest
from meshnode.api.responses.service import Responses
from meshnode.api.serving import request_resources
from meshnode.api.streams import EVENTS
from meshnode.errors import RequestError

__all__ = ["add_response_routes"]

_PAGE, _MAX_PAGE = 20, 100
_PAGING: Mapping[str, Mapping[str, object]] = {
    "order": {"enum": ["asc", "desc"]},
    "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE},
    "after": {"type": "string"},
}


_INCLUDE = ("include", "include[]")


def _check_include(wished: Sequence[str]) -> None:
    """Refuse what no answer has. What there is here of the rest is given anyway."""
    unknown = next((name for name in wished if name not in get_args(Include)), None)
    if unknown is not None:
        raise RequestError(f"'include' is among {', '.join(get_args(Include))}, not {unknown[:80]!r}", param="include")


def add_response_routes(app: QuartTrio, dependencies: ApiDependencies, responses: Responses) -> None:
    """Add them."""
    timeout, answers = dependencies.body_timeout, (JSON, EVENTS.content_type)

    def check_query(*known: str) -> None:
        unknown = next((name for name in request.args if name not in known), None)
        if unknown is not None:
            raise RequestError(
                f"the query parameter {unknown[:80]!r} is not supported by this node", param=unknown[:80]
            )
        _check_include(request.args.getlist("include") + request.args.getlist("include[]"))

    @app.post("/v1/responses")
    @takes(ResponseRequest, "Make a response.", timeout=timeout, answers=answers)
    async def create(body: ResponseRequest) -> Response:
        check_query()
        resources = request_resources(request)
        client = request.remote_addr or "unknown"
        try:
            return await responses.create(body, resources, client=client, request=g.request)
        except RequestError as error:
            if error.param != "messages":
                raise
            raise type(error)(str(error), param="input") from error  # as it is called here

    @app.get("/v1/responses/<name>")
    @describes(Operation("Show a response that is kept, or being made.", query={"stream": {"type": "boolean"}}))
    async def show(name: str) -> Response:
        check_query("stream", *_INCLUDE)
        if request.args.get("stream") in ("true", "1"):
            raise RequestError(
                "'stream' is not supported for an answer that is fetched; ask again until it is there", param="stream"
            )
        return json_reply(responses.show(name))

    @app.delete("/v1/responses/<name>")
    @describes(Operation("Forget a response."))
    async def delete(name: str) -> Response:
        check_query()
        return json_reply(await responses.delete(name))

    @app.post("/v1/responses/<name>/cancel")
    @describes(Operation("End a response that is made in the background."))
    async def cancel(name: str) -> Response:
        check_query()
        return json_reply(responses.cancel(name))

    @app.get("/v1/responses/<name>/input_items")
    @describes(Operation("List what a response was made from.", query=_PAGING))
    async def input_items(name: str) -> Response:
        check_query(*_PAGING, *_INCLUDE)
        order, limit = request.args.get("order", "desc"), request.args.get("limit", str(_PAGE))
        if order not in ("asc", "desc"):
            raise RequestError("'order' is 'asc' or 'desc'", param="order")
        if not limit.isdecimal() or not 1 <= int(limit) <= _MAX_PAGE:
            raise RequestError(f"'limit' is from 1 to {_MAX_PAGE}", param="limit")
        page = responses.input_items(
            name, newest_first=order == "desc", limit=int(limit), after=request.args.get("after")
        )
        return json_reply(page)
