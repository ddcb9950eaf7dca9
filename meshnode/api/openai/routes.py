"""OpenAI's paths."""

from quart import Response, g, request
from quart_trio import QuartTrio

from meshnode.api.bodies import read_json
from meshnode.api.openai.chat import complete_chat
from meshnode.api.openai.completions import CompletionRequest, complete_text
from meshnode.api.openai.models import list_models, show_model
from meshnode.api.openai.schemas import ChatRequest
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.serving import request_resources

__all__ = ["add_openai_routes"]


def add_openai_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add them."""

    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        resources = request_resources(request)
        body = await read_json(request, ChatRequest, timeout=dependencies.body_timeout)
        return await complete_chat(body, dependencies, resources, client=_client(), request=g.request)

    @app.post("/v1/completions")
    async def completions() -> Response:
        resources = request_resources(request)
        body = await read_json(request, CompletionRequest, timeout=dependencies.body_timeout)
        return await complete_text(body, dependencies, resources, client=_client(), request=g.request)

    @app.get("/v1/models")
    async def models() -> Response:
        return json_reply(list_models(dependencies.models()))

    @app.get("/v1/models/<path:name>")
    async def model(name: str) -> Response:
        return json_reply(show_model(dependencies.models(), name))


def _client() -> str:
    return request.remote_addr or "unknown"
