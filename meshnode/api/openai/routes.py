"""OpenAI's paths."""

from quart import Response, g, request
from quart_trio import QuartTrio

from meshnode.api.anthropic import models as anthropic
from meshnode.api.anthropic.version import check_version, speaks_anthropic
from meshnode.api.naming import find_model
from meshnode.api.openai.chat import complete_chat
from meshnode.api.openai.completions import CompletionRequest, complete_text
from meshnode.api.openai.embeddings import EmbeddingsRequest, make_embeddings
from meshnode.api.openai.models import list_models, show_model
from meshnode.api.openai.schemas import ChatRequest
from meshnode.api.operations import JSON, Operation, describes, takes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.serving import request_resources
from meshnode.api.streams import EVENTS

__all__ = ["add_openai_routes"]


def add_openai_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add them."""
    timeout, answers = dependencies.body_timeout, (JSON, EVENTS.content_type)

    @app.post("/v1/chat/completions")
    @takes(ChatRequest, "Answer a conversation.", timeout=timeout, answers=answers)
    async def chat(body: ChatRequest) -> Response:
        resources = request_resources(request)
        return await complete_chat(body, dependencies, resources, client=_client(), request=g.request)

    @app.post("/v1/completions")
    @takes(CompletionRequest, "Go on from a text.", timeout=timeout, answers=answers)
    async def completions(body: CompletionRequest) -> Response:
        resources = request_resources(request)
        return await complete_text(body, dependencies, resources, client=_client(), request=g.request)

    @app.post("/v1/embeddings")
    @takes(EmbeddingsRequest, "Make vectors of texts.", timeout=timeout)
    async def embeddings(body: EmbeddingsRequest) -> Response:
        return await make_embeddings(body, dependencies, client=_client(), request=g.request)

    @app.get("/v1/models")
    @describes(Operation("List the models.", query=anthropic.PAGING))
    async def models() -> Response:
        if speaks_anthropic(request.headers):
            check_version(request.headers)
            return json_reply(anthropic.list_models(dependencies.models(), request.args))
        return json_reply(list_models(dependencies.models()))

    @app.get("/v1/models/<path:name>")
    @describes(Operation("Show one model."))
    async def model(name: str) -> Response:
        if speaks_anthropic(request.headers):
            check_version(request.headers)
            return json_reply(anthropic.show_model(find_model(dependencies.models(), name)))
        return json_reply(show_model(dependencies.models(), name))


def _client() -> str:
    return request.remote_addr or "unknown"
