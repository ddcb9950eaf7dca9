"""Ollama's vectors of texts: POST /api/embed, and /api/embeddings, which came before it."""

from typing import Annotated, Any

import attrs
import msgspec
from quart import Response

from meshnode.api.embedding import as_numbers, embed, embedding_requests, shortened
from meshnode.api.hints import hint
from meshnode.api.ollama.options import KeepAlive, Options
from meshnode.api.openai.schemas import ModelName
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.types.ids import RequestId

__all__ = ["EmbedRequest", "OldEmbedRequest", "make_ollama_embedding", "make_ollama_embeddings"]

_NOT_FOR_VECTORS = hint("they are about the machine, which the node's settings say all of, or about sampling")


class EmbedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /api/embed. What does not fit the context is cut at its end, unless 'truncate' is false."""

    model: ModelName
    input: str | list[Any]
    truncate: bool | None = None
    dimensions: int | None = None
    options: Annotated[Options | None, _NOT_FOR_VECTORS] = None
    keep_alive: KeepAlive = None


class OldEmbedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /api/embeddings."""

    model: ModelName
    prompt: str
    options: Annotated[Options | None, _NOT_FOR_VECTORS] = None
    keep_alive: KeepAlive = None


async def make_ollama_embeddings(
    body: EmbedRequest, dependencies: ApiDependencies, *, client: str, request: RequestId
) -> Response:
    """Answer /api/embed. Raises RequestError and InferenceError leafs."""
    requests = embedding_requests(body.model, body.input, "input", client, request)
    made = await embed([attrs.evolve(each, truncates=body.truncate is not False) for each in requests], dependencies)
    spans = made.journey.spans()
    reply: dict[str, object] = {
        "model": made.model,
        "embeddings": [as_numbers(shortened(vector, body.dimensions)) for vector in made.vectors],
        "total_duration": round(spans.total * 1e9),
        "load_duration": round(spans.queue * 1e9),
        "prompt_eval_count": made.prompt_tokens,
    }
    return json_reply(reply, headers=made.journey.headers())


async def make_ollama_embedding(
    body: OldEmbedRequest, dependencies: ApiDependencies, *, client: str, request: RequestId
) -> Response:
    """Answer /api/embeddings. Raises RequestError and InferenceError leafs."""
    requests = embedding_requests(body.model, body.prompt, "prompt", client, request)
    made = await embed([attrs.evolve(each, truncates=True) for each in requests], dependencies)
    return json_reply({"embedding": as_numbers(made.vectors[0])}, headers=made.journey.headers())
