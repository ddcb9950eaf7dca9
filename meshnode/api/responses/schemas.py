"""The body of POST /v1/responses. Unknown fields are refused by name; hints that change no answer here are taken."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import attrs
import msgspec

from meshnode.api.bodies import json_text
from meshnode.api.hints import CacheHint, Label, hint
from meshnode.api.openai.sampling import CacheOptions
from meshnode.api.openai.schemas import ModelName, thinking_of
from meshnode.api.openai.tools import (
    ToolEntry,
    check_tools,
    described,
    functions_among,
    others_among,
    output_format,
    tool_use,
)
from meshnode.api.parameters import LAST_TOKEN, choice_seeds, default, within
from meshnode.api.responses.items import Item, conversation
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, Tool
from meshnode.types.generation import GenerationRequest, SamplingParameters
from meshnode.types.ids import RequestId

__all__ = ["Include", "ResponseRequest"]

_LOGPROBS = "message.output_text.logprobs"
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""What OpenAI's answers may hold besides; reasoning is told in plain words here."""


_Summary = Literal["auto", "concise", "detailed"]
_TOLD = hint("no summary is made, as the reasoning itself is told")


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to think."""

    effort: str | None = None
    summary: Annotated[_Summary | None, _TOLD] = None
    generate_summary: Annotated[_Summary | None, _TOLD] = None
    context: Literal["auto", "current_turn", "all_turns"] | None = (
        None  # but for the current turn, the template's choice
    )
    mode: Literal["standard"] | None = None


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: Literal["medium"] | None = None  # as the model likes it


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A function. The model knows all of them from the beginning, and nothing else here calls them."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | bool | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None  # told to the model with the description
    defer_loading: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a stream."""

    include_obfuscation: Annotated[
        bool | None, hint("it pads streams so that lengths tell nothing; none is padded")
    ] = None


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
    tools: list[ToolEntry] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    top_logprobs: int | None = None
    include: list[Include] | None = None  # log-probabilities are given if asked for; nothing else of it exists here
    metadata: dict[str, str] | None = None
    user: Label = None
    safety_identifier: Label = None
    prompt_cache_key: CacheHint = None
    prompt_cache_retention: CacheHint = None
    prompt_cache_options: Annotated[CacheOptions | None, hint("every prefix is cached, whatever it says")] = None
    client_metadata: Annotated[Any, hint("it is a label")] = None
    max_tool_calls: Annotated[int | None, hint("it counts calls of tools that OpenAI runs; none of them run here")] = (
        None
    )
    service_tier: str | None = None
    stream_options: StreamOptions | None = None
    # Taken when they ask for nothing, else refused.
    truncation: str | None = None
    conversation: Any = None
    prompt: Any = None

    def generation(self, items: Sequence[Item], client: str, request: RequestId, *, kept: int = 0) -> GenerationRequest:
        """Return the generation over the whole conversation, the first `kept` items of earlier ones. Raises RequestError."""
        self._refuse_unsupported()
        (seed,) = choice_seeds(None, 1)
        limit = self.max_output_tokens
        reasoning, text = self.reasoning or Reasoning(), self.text or TextOptions()
        return GenerationRequest(
            id=request,
            model=self.model,
            messages=self._messages(items, kept),
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
    def warnings(self) -> tuple[str, ...]:
        """What is not taken as it is meant."""
        return others_among(self.tools or ())

    def _messages(self, items: Sequence[Item], kept: int) -> tuple[ChatMessage, ...]:
        messages = conversation(items, self.instructions, kept=kept)
        if self.reasoning is None or self.reasoning.context != "current_turn":
            return messages
        turn = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
        return (*(attrs.evolve(message, reasoning="") for message in messages[:turn]), *messages[turn:])

    def _tools(self) -> tuple[Tool, ...]:
        found = []
        for at, tool in functions_among(self.tools or (), FunctionTool):
            schema = {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
            parameters = json_text(schema, f"the parameters of tool {tool.name[:80]!r}", f"{at}.parameters")
            told = described(tool.description, "What it returns fits the JSON schema", tool.output_schema)
            found.append(Tool(tool.name, told, parameters, bool(tool.strict)))
        check_tools(found)
        return tuple(found)

    def _refuse_unsupported(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise RequestError("'stream_options' goes with 'stream': true", param="stream_options")
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
