"""The body of POST /v1/responses. Unknown fields are refused by name; hints that change no answer here are taken."""

from collections.abc import Sequence
from typing import Any

import msgspec

from meshnode.api.bodies import json_text
from meshnode.api.openai.schemas import ModelName, thinking_of
from meshnode.api.openai.tools import check_tools, output_format, tool_use
from meshnode.api.parameters import LAST_TOKEN, choice_seeds, default, within
from meshnode.api.responses.items import Item, conversation
from meshnode.errors import RequestError
from meshnode.types.conversation import Tool
from meshnode.types.generation import GenerationRequest, SamplingParameters
from meshnode.types.ids import RequestId

__all__ = ["ResponseRequest"]

_LOGPROBS = "message.output_text.logprobs"


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to think. Summaries are not made: the reasoning itself is told."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None  # a hint to OpenAI's models


class ResponseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked for."""

    model: ModelName
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = False
    store: bool | None = True
    background: bool | None = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None  # log-probabilities are given if asked for; nothing else of it exists here
    metadata: dict[str, str] | None = None
    # Labels and hints that change no answer here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    client_metadata: Any = None
    max_tool_calls: int | None = None  # of tools that OpenAI runs
    service_tier: str | None = None
    stream_options: Any = None  # padding against guessing lengths
    # Taken when they ask for nothing, else refused.
    truncation: str | None = None
    conversation: Any = None
    prompt: Any = None

    def generation(self, items: Sequence[Item], client: str, request: RequestId) -> GenerationRequest:
        """Return the generation over the whole conversation. Raises RequestError."""
        self._refuse_unsupported()
        (seed,) = choice_seeds(None, 1)
        limit = self.max_output_tokens
        reasoning, text = self.reasoning or Reasoning(), self.text or TextOptions()
        return GenerationRequest(
            id=request,
            model=self.model,
            messages=conversation(items, self.instructions),
            sampling=SamplingParameters(
                temperature=within("temperature", default(self.temperature, 1.0), 0, 2),
                top_p=within("top_p", default(self.top_p, 1.0), 0, 1, above=True),
                seed=seed,
                top_logprobs=self.wanted_logprobs,
            ),
            as_advised=self.temperature is None and self.top_p is None,
            max_tokens=None if limit is None else int(within("max_output_tokens", limit, 1, LAST_TOKEN)),
            client=client,
            tools=tool_use(self._tools(), self.tool_choice, parallel=self.parallel_tool_calls),
            output=output_format(text.format, "text.format"),
            thinking=thinking_of(reasoning.effort, "reasoning.effort"),
        )

    @property
    def wanted_logprobs(self) -> int | None:
        """How many log-probabilities each token is to have, None for none. Raises RequestError."""
        if self.top_logprobs is not None:
            return int(within("top_logprobs", self.top_logprobs, 0, 20)) or (
                0 if _LOGPROBS in (self.include or ()) else None
            )
        return 0 if _LOGPROBS in (self.include or ()) else None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Types of tools that this node cannot run; they are not shown to the model."""
        return tuple(
            dict.fromkeys(str(tool.get("type"))[:40] for tool in self.tools or () if tool.get("type") != "function")
        )

    def _tools(self) -> tuple[Tool, ...]:
        found = []
        for index, tool in enumerate(self.tools or ()):
            if tool.get("type") != "function":
                continue
            match tool:
                case {"name": str(name)}:
                    schema = tool.get("parameters") or {"type": "object", "properties": {}}
                    parameters = json_text(
                        schema, f"the parameters of tool {name[:80]!r}", f"tools[{index}].parameters"
                    )
                    found.append(Tool(name, str(tool.get("description") or ""), parameters, bool(tool.get("strict"))))
                case _:
                    raise RequestError("a function has a 'name'", param=f"tools[{index}].name")
        check_tools(found)
        return tuple(found)

    def _refuse_unsupported(self) -> None:
        if self.truncation not in (None, "disabled"):
            raise RequestError("'truncation' is not supported by this node; shorten the input", param="truncation")
        for name in ("conversation", "prompt"):
            if getattr(self, name):
                raise RequestError(f"'{name}' is not supported by this node", param=name)
        if self.service_tier not in (None, "auto", "default"):
            raise RequestError("'service_tier' is not supported by this node", param="service_tier")
        if self.background and self.store is False:
            raise RequestError("'background' needs 'store': the answer is fetched later", param="background")
        if self.background and self.stream:
            raise RequestError("'background' and 'stream' together are not supported by this node", param="stream")
