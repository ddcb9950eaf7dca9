"""Texts to vectors, for every surface: inputs become requests, and a few of them run at a time."""

import base64
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from meshnode.api.journey import Journey
from meshnode.api.parameters import LAST_TOKEN, within
from meshnode.api.ports import ApiDependencies
from meshnode.errors import RequestError
from meshnode.types.generation import Delta, GenerationRequest
from meshnode.types.ids import RequestId

__all__ = ["Embeddings", "as_base64", "as_numbers", "embed", "embedding_requests", "shortened"]

_MOST_INPUTS = 2048  # OpenAI's limit
_AT_A_TIME = 16


@attrs.frozen
class Embeddings:
    """The vectors, in the order of the inputs."""

    vectors: tuple[bytes, ...]  # each little-endian float32, of length 1
    journey: Journey

    @property
    def model(self) -> str:
        """What the model is called here."""
        return "" if self.journey.started is None else self.journey.started.model

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all inputs together."""
        return self.journey.usage().prompt_tokens


def embedding_requests(
    model: str, given: object, name: str, client: str, request: RequestId
) -> list[GenerationRequest]:
    """Return a request per input of the field `name`: texts, or lists of token ids. Raises RequestError."""
    inputs: list[Any] = list(given) if isinstance(given, list) and not _is_tokens(given) else [given]
    if not 1 <= len(inputs) <= _MOST_INPUTS:
        raise RequestError(f"{name!r} holds {len(inputs)} inputs; 1 to {_MOST_INPUTS} are allowed", param=name)
    base = GenerationRequest(id=request, model=model, max_tokens=1, client=client, embeds=True)
    requests = []
    for index, item in enumerate(inputs):
        each = attrs.evolve(base, id=request if index == 0 else RequestId(f"{request}-{index}"))
        if isinstance(item, str):
            if not item:
                raise RequestError(
                    f"input {index} of {name!r} is empty; there is nothing to make a vector of", param=name
                )
            requests.append(attrs.evolve(each, prompt=item))
        elif _is_tokens(item):
            tokens = tuple(int(within(name, token, 0, LAST_TOKEN)) for token in item)
            requests.append(attrs.evolve(each, prompt_tokens=tokens))
        else:
            raise RequestError(f"input {index} of {name!r} is neither a text nor a list of token ids", param=name)
    return requests


def _is_tokens(item: object) -> bool:
    return isinstance(item, list) and bool(item) and all(type(token) is int for token in item)


async def embed(requests: Sequence[GenerationRequest], dependencies: ApiDependencies) -> Embeddings:
    """Run them. Cancellation ends what still runs. Raises RequestError and InferenceError leafs."""
    journey = Journey()
    vectors: dict[int, bytes] = {}
    for begin in range(0, len(requests), _AT_A_TIME):
        async with dependencies.generate(requests[begin : begin + _AT_A_TIME]) as events:
            async for index, event in events:
                journey.follow(begin + index, event)
                if isinstance(event, Delta) and event.vector:
                    vectors[begin + index] = event.vector
    return Embeddings(tuple(vectors[index] for index in range(len(requests))), journey)


def shortened(vector: bytes, dimensions: int | None) -> bytes:
    """Return the first `dimensions` numbers, again of length 1. Raises RequestError for more than there are."""
    if dimensions is None:
        return vector
    numbers = np.frombuffer(vector, "<f4")
    if not 1 <= dimensions <= len(numbers):
        raise RequestError(
            f"'dimensions' is {dimensions}; vectors of this model have 1 to {len(numbers)}", param="dimensions"
        )
    kept = numbers[:dimensions].astype(np.float64)
    length = np.linalg.norm(kept)
    return (kept / length if length > 0 else kept).astype("<f4").tobytes()


def as_numbers(vector: bytes) -> list[float]:
    """Return the numbers, each with the digits that a float32 has."""
    return [float(number) for number in np.frombuffer(vector, "<f4").astype(str)]


def as_base64(vector: bytes) -> str:
    """Return the bytes as OpenAI's SDK reads them."""
    return base64.b64encode(vector).decode()
