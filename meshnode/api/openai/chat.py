"""POST /v1/chat/completions."""

from contextlib import AsyncExitStack

from quart import Response

from meshnode.api.answering import reply_to
from meshnode.api.openai.reply import ChatReply
from meshnode.api.openai.schemas import ChatRequest
from meshnode.api.ports import ApiDependencies
from meshnode.types.ids import RequestId

__all__ = ["complete_chat"]


async def complete_chat(
    body: ChatRequest, dependencies: ApiDependencies, resources: AsyncExitStack, *, client: str, request: RequestId
) -> Response:
    """Answer a chat request, whole or as a stream; see `reply_to`."""
    requests = body.generations(client, request)
    reply = ChatReply(request, len(requests), bool(body.logprobs), body.include_usage)
    return await reply_to(requests, reply, dependencies, resources, stream=bool(body.stream), warnings=body.warnings)
