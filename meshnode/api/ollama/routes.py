"""Ollama's paths."""

from quart import Response, g, request
from quart_trio import QuartTrio

from meshnode.api.answering import reply_to
from meshnode.api.naming import find_model
from meshnode.api.ollama.embeddings import (
    EmbedRequest,
    OldEmbedRequest,
    make_ollama_embedding,
    make_ollama_embeddings,
)
from meshnode.api.ollama.models import VERSION, list_models, running_models, show_model
from meshnode.api.ollama.reply import LINES, OllamaReply, loaded_reply
from meshnode.api.ollama.schemas import ChatRequest, GenerateRequest, ShowRequest
from meshnode.api.operations import JSON, Operation, describes, takes
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.api.serving import request_resources
from meshnode.errors import RequestError
from meshnode.types.generation import GenerationRequest

__all__ = ["add_ollama_routes"]

_TYPES = (
    JSON,
    "",
    "application/x-www-form-urlencoded",
)  # the last is what curl -d says, and Ollama's examples are that


def add_ollama_routes(app: QuartTrio, dependencies: ApiDependencies) -> None:
    """Add them."""
    timeout, answers = dependencies.body_timeout, (LINES.content_type, JSON)

    @app.post("/api/chat")
    @takes(ChatRequest, "Answer a conversation, or load a model.", timeout=timeout, types=_TYPES, answers=answers)
    async def ollama_chat(body: ChatRequest) -> Response:
        return await _answer(body, dependencies)

    @app.post("/api/generate")
    @takes(GenerateRequest, "Answer a prompt, or load a model.", timeout=timeout, types=_TYPES, answers=answers)
    async def ollama_generate(body: GenerateRequest) -> Response:
        return await _answer(body, dependencies)

    @app.post("/api/embed")
    @takes(EmbedRequest, "Make vectors of texts.", timeout=timeout, types=_TYPES)
    async def ollama_embed(body: EmbedRequest) -> Response:
        return await make_ollama_embeddings(body, dependencies, client=_client(), request=g.request)

    @app.post("/api/embeddings")
    @takes(OldEmbedRequest, "Make a vector of a text.", timeout=timeout, types=_TYPES)
    async def ollama_embedding(body: OldEmbedRequest) -> Response:
        return await make_ollama_embedding(body, dependencies, client=_client(), request=g.request)

    @app.get("/api/tags")
    @describes(Operation("List the models."))
    async def ollama_tags() -> Response:
        return json_reply(list_models(dependencies.models()))

    @app.get("/api/ps")
    @describes(Operation("List the models that are loaded."))
    async def ollama_running() -> Response:
        return json_reply(running_models(dependencies.models()))

    @app.post("/api/show")
    @takes(ShowRequest, "Show one model.", timeout=timeout, types=_TYPES)
    async def ollama_show(body: ShowRequest) -> Response:
        return json_reply(show_model(find_model(dependencies.models(), body.wanted)))

    @app.get("/api/version")
    @describes(Operation("Say which interface this is."))
    async def ollama_version() -> Response:
        return json_reply({"version": VERSION})


def _client() -> str:
    return request.remote_addr or "unknown"


async def _answer(body: ChatRequest | GenerateRequest, dependencies: ApiDependencies) -> Response:
    is_chat = isinstance(body, ChatRequest)
    client = _client()
    if body.only_loads:
        await _load(body, client, dependencies)
        return json_reply(loaded_reply(body.model, is_chat=is_chat))
    generation = body.generation(client, g.request)
    reply = OllamaReply(body.model, is_chat, bool(body.logprobs))
    resources = request_resources(request)
    streams = body.stream is not False
    return await reply_to([generation], reply, dependencies, resources, stream=streams, warnings=body.warnings)


async def _load(body: ChatRequest | GenerateRequest, client: str, dependencies: ApiDependencies) -> None:
    """Have a model loaded by what loads it here: a request, for the vector of nothing in particular, which all can make."""
    if body.asks_to_unload:
        raise RequestError(
            "'keep_alive': 0 is not supported: a model stays loaded until another needs its memory", param="keep_alive"
        )
    wanted = GenerationRequest(g.request, body.model, prompt=".", max_tokens=1, client=client, embeds=True)
    async with dependencies.generate([wanted]) as events:
        async for _ in events:
            pass
