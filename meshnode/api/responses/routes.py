"""The paths of Responses."""

from collections.abc import Mapping

from quart import Response, g, request
from quart_trio import QuartTrio

from meshnode.api.operations import JSON, Operation, describes, takes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.responses.schemas import ResponseRequest
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


def add_response_routes(app: QuartTrio, dependencies: ApiDependencies, responses: Responses) -> None:
    """Add them."""
    timeout, answers = dependencies.body_timeout, (JSON, EVENTS.content_type)

    @app.post("/v1/responses")
    @takes(ResponseRequest, "Make a response.", timeout=timeout, answers=answers)
    async def create(body: ResponseRequest) -> Response:
        resources = request_resources(request)
        client = request.remote_addr or "unknown"
        return await responses.create(body, resources, client=client, request=g.request)

    @app.get("/v1/responses/<name>")
    @describes(Operation("Show a response that is kept, or being made.", query={"stream": {"type": "boolean"}}))
    async def show(name: str) -> Response:
        if request.args.get("stream") in ("true", "1"):
            raise RequestError(
                "'stream' is not supported for an answer that is fetched; ask again until it is there", param="stream"
            )
        return json_reply(responses.show(name))

    @app.delete("/v1/responses/<name>")
    @describes(Operation("Forget a response."))
    async def delete(name: str) -> Response:
        return json_reply(await responses.delete(name))

    @app.post("/v1/responses/<name>/cancel")
    @describes(Operation("End a response that is made in the background."))
    async def cancel(name: str) -> Response:
        return json_reply(responses.cancel(name))

    @app.get("/v1/responses/<name>/input_items")
    @describes(Operation("List what a response was made from.", query=_PAGING))
    async def input_items(name: str) -> Response:
        order, limit = request.args.get("order", "desc"), request.args.get("limit", str(_PAGE))
        if order not in ("asc", "desc"):
            raise RequestError("'order' is 'asc' or 'desc'", param="order")
        if not limit.isdecimal() or not 1 <= int(limit) <= _MAX_PAGE:
            raise RequestError(f"'limit' is from 1 to {_MAX_PAGE}", param="limit")
        page = responses.input_items(
            name, newest_first=order == "desc", limit=int(limit), after=request.args.get("after")
        )
        return json_reply(page)
