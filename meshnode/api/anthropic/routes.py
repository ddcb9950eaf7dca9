"""Anthropic's paths. Its list of models shares OpenAI's path, and is told apart there by the version header."""

from quart import Response, g, request
from quart_trio import QuartTrio

from meshnode.api.answering import reply_to
from meshnode.api.anthropic.reply import STREAM_TYPE, MessageReply
from meshnode.api.anthropic.schemas import CountRequest, MessagesRequest
from meshnode.api.anthropic.version import check_version, version_warnings
from meshnode.api.anthropic.wrong import wrong_value
from meshnode.api.operations import JSON, takes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.serving import request_resources
from meshnode.errors import Unavailable
from meshnode.types.generation import Started

__all__ = ["add_anthropic_routes"]


def add_anthropic_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add them."""
    timeout = dependencies.body_timeout

    @app.post("/v1/messages")
    @takes(MessagesRequest, "Answer a conversation.", timeout=timeout, answers=(STREAM_TYPE, JSON), wrong=wrong_value)
    async def messages(body: MessagesRequest) -> Response:
        check_version(request.headers)
        generation = body.generation(_client(), g.request)
        warnings = (*version_warnings(request.headers), *body.warnings)
        manages = body.context_management is not None
        reply = MessageReply(g.request, body.max_tokens, body.hides_thinking, manages)
        resources = request_resources(request)
        streams = bool(body.stream)
        return await reply_to([generation], reply, dependencies, resources, stream=streams, warnings=warnings)

    @app.post("/v1/messages/count_tokens")
    @takes(CountRequest, "Count the tokens of a conversation.", timeout=timeout, wrong=wrong_value)
    async def count_tokens(body: CountRequest) -> Response:
        check_version(request.headers)
        count = await _count(body, dependencies)
        edits = {} if body.context_management is None else {"context_management": {"original_input_tokens": count}}
        return json_reply({"input_tokens": count, **edits})


async def _count(body: CountRequest, dependencies: ApiDependencies) -> int:
    """Return the length of the prompt that the conversation makes; whoever would answer counts, and is stopped then."""
    async with dependencies.generate([body.generation(_client(), g.request)]) as events:
        async for _, event in events:
            if isinstance(event, Started):
                return event.prompt_tokens
    raise Unavailable("nobody could count; try again")


def _client() -> str:
    return request.remote_addr or "unknown"
