"""POST /v1/completions: text that goes on from a prompt, without a chat template."""

from contextlib import AsyncExitStack
from typing import Any

import attrs
from quart import Response

from meshnode.api.answering import reply_to
from meshnode.api.openai.completion_reply import CompletionReply
from meshnode.api.openai.sampling import SamplingFields
from meshnode.api.openai.schemas import ModelName, numbered
from meshnode.api.parameters import LAST_TOKEN, default, within
from meshnode.api.ports import ApiDependencies
from meshnode.errors import RequestError
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import RequestId

__all__ = ["CompletionRequest", "complete_text"]

_MAX_CHOICES = 128
_Prompts = str | list[str | int | list[int]]


class CompletionRequest(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body. OpenAI's defaults: 16 tokens, no echo."""

    model: ModelName
    prompt: _Prompts
    logprobs: int | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None

    def generations(self, client: str, request: RequestId) -> list[GenerationRequest]:
        """Return one generation per prompt and choice, those of a prompt together. Raises RequestError."""
        if self.suffix:
            raise RequestError("'suffix' is not supported by this node: its models write forwards", param="suffix")
        if self.best_of is not None and self.best_of != default(self.n, 1):
            raise RequestError("'best_of' is not supported by this node; ask for 'n' and choose", param="best_of")
        if self.stream_options is not None and not self.stream:
            raise RequestError("'stream_options' goes with 'stream': true", param="stream_options")
        top = None if self.logprobs is None else int(within("logprobs", self.logprobs, 0, 20))
        samplings = self.samplings(top)
        prompts = _prompts(self.prompt)
        if len(prompts) * len(samplings) > _MAX_CHOICES:
            raise RequestError(f"{len(prompts) * len(samplings)} choices; {_MAX_CHOICES} are allowed", param="prompt")
        base = GenerationRequest(
            id=request,
            model=self.model,
            as_advised=self.leaves_sampling_to_the_model,
            max_tokens=int(within("max_tokens", default(self.max_tokens, 16), 0 if self.echo else 1, LAST_TOKEN)),
            stop=self.stop_sequences(),
            client=client,
            echo=bool(self.echo),
        )
        return numbered(
            [
                attrs.evolve(base, prompt=text, prompt_tokens=tokens, sampling=sampling)
                for text, tokens in prompts
                for sampling in samplings
            ]
        )


def _prompts(given: _Prompts) -> list[tuple[str | None, tuple[int, ...]]]:
    """Return each prompt as text or as tokens. Raises RequestError."""
    if isinstance(given, str):
        return [(given, ())]
    if given and all(isinstance(item, int) for item in given):
        return [(None, _tokens(given))]
    if len(given) > _MAX_CHOICES:
        raise RequestError(f"{len(given)} prompts; {_MAX_CHOICES} choices are allowed", param="prompt")
    found: list[tuple[str | None, tuple[int, ...]]] = []
    for item in given:
        if isinstance(item, int):
            raise RequestError("'prompt' is a text, a list of token ids, or a list of either", param="prompt")
        found.append((item, ()) if isinstance(item, str) else (None, _tokens(item)))
    if not found:
        raise RequestError("'prompt' must not be empty", param="prompt")
    return found


def _tokens(items: list[Any]) -> tuple[int, ...]:
    if not items:
        raise RequestError("a prompt of token ids must not be empty", param="prompt")
    for extreme in (min(items), max(items)):
        within("prompt", extreme, 0, LAST_TOKEN)
    return tuple(items)


async def complete_text(
    body: CompletionRequest,
    dependencies: ApiDependencies,
    resources: AsyncExitStack,
    *,
    client: str,
    request: RequestId,
) -> Response:
    """Answer a request, whole or as a stream; see `reply_to`."""
    requests = body.generations(client, request)
    reply = CompletionReply(request, len(requests), default(body.n, 1), body.logprobs is not None, body.include_usage)
    return await reply_to(requests, reply, dependencies, resources, stream=bool(body.stream))
