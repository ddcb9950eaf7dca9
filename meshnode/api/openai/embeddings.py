"""POST /v1/embeddings: texts become vectors, of length 1."""

from typing import Any, Literal

import msgspec
from quart import Response

from meshnode.api.embedding import Embeddings, as_base64, as_numbers, embed, embedding_requests, shortened
from meshnode.api.hints import Label
from meshnode.api.openai.schemas import ModelName
from meshnode.api.ports import ApiDependencies
from meshnode.api.replies import json_reply
from meshnode.types.ids import RequestId

__all__ = ["EmbeddingsRequest", "make_embeddings"]


class EmbeddingsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body. An input is a text or a list of token ids; what does not fit the model's context is refused."""

    model: ModelName
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None  # the first ones are kept
    user: Label = None


async def make_embeddings(
    body: EmbeddingsRequest, dependencies: ApiDependencies, *, client: str, request: RequestId
) -> Response:
    """Answer a request. Raises RequestError and InferenceError leafs."""
    requests = embedding_requests(body.model, body.input, "input", client, request)
    made = await embed(requests, dependencies)
    return json_reply(_reply(made, body), headers=made.journey.headers())


def _reply(made: Embeddings, body: EmbeddingsRequest) -> dict[str, object]:
    written = as_base64 if body.encoding_format == "base64" else as_numbers
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": written(shortened(vector, body.dimensions))}
            for index, vector in enumerate(made.vectors)
        ],
        "model": made.model,
        "usage": {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens},
    }
