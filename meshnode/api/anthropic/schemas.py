"""The request bodies. Unknown fields are refused by name; what is accepted without effect changes no answer."""

from typing import Annotated, Any, Literal

import msgspec

from meshnode.api.anthropic.blocks import Text, Turn
from meshnode.api.anthropic.conversation import flatten
from meshnode.api.anthropic.tools import ToolChoice, ToolEntry, client_tools, server_tools, tool_use
from meshnode.api.anthropic.wrong import wrong_at
from meshnode.api.bodies import json_text
from meshnode.api.hints import CacheMark, hint
from meshnode.api.openai.schemas import ModelName
from meshnode.api.parameters import LAST_TOKEN, choice_seeds, default, stops, within
from meshnode.types.conversation import OutputFormat
from meshnode.types.generation import GenerationRequest, SamplingParameters
from meshnode.types.ids import RequestId

__all__ = ["CountRequest", "MessagesRequest"]

_THINKS = {"enabled": True, "disabled": False, "adaptive": None}


class Thinking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to think, and how long at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None

    def check(self, max_tokens: int | None) -> None:
        """Raise RequestError for a budget that cannot be, or stands where none does."""
        if self.type != "enabled":
            if self.budget_tokens is not None:
                raise wrong_at("thinking.budget_tokens", f"goes with the type 'enabled', not with {self.type!r}")
            return
        if self.budget_tokens is None:
            raise wrong_at("thinking.budget_tokens", "is needed and not there; without a budget the type is 'adaptive'")
        if self.budget_tokens < 1:
            raise wrong_at("thinking.budget_tokens", "must be at least 1")
        if max_tokens is not None and self.budget_tokens >= max_tokens:
            raise wrong_at("thinking.budget_tokens", f"must be less than max_tokens, which is {max_tokens}")


class JsonForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schema an answer has to fit."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of an answer, and how much of a model goes into it."""

    format: JsonForm | None = None
    effort: Annotated[str | None, hint("a model thinks or does not")] = None
    task_budget: Annotated[dict[str, Any] | None, hint("no model here is told of it")] = None


class _Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both paths take."""

    model: ModelName
    messages: list[Turn]
    system: str | list[Text] | None = None
    tools: list[ToolEntry] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonForm | None = None  # where the form stood before output_config
    cache_control: CacheMark = None
    context_management: Annotated[dict[str, Any] | None, hint("no edit is made, and the reply says so")] = None
    mcp_servers: list[Any] | None = None  # taken when there are none
    speed: Annotated[Literal["standard"] | None, hint("there is one speed")] = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not taken as it is meant: tools that nobody can run here, and how long to think."""
        found = server_tools(self.tools or ())
        if self.thinking is not None and self.thinking.budget_tokens is not None:
            found += ("thinking.budget_tokens is not kept to: a model thinks for as long as it does",)
        return found

    @property
    def hides_thinking(self) -> bool:
        """Whether thoughts are not shown."""
        return self.thinking is not None and self.thinking.display == "omitted"

    def _request(self, request: RequestId, client: str, **fields: Any) -> GenerationRequest:  # noqa: ANN401
        if self.mcp_servers:
            raise wrong_at("mcp_servers", "this node connects to no MCP servers")
        return GenerationRequest(
            id=request,
            model=self.model,
            messages=flatten(self.system, self.messages),
            client=client,
            tools=tool_use(client_tools(self.tools or ()), self.tool_choice),
            thinking=None if self.thinking is None else _THINKS[self.thinking.type],
            output=self._form(),
            **fields,
        )

    def _form(self) -> OutputFormat:
        form = self.output_config.format if self.output_config is not None else None
        if form is not None and self.output_format is not None:
            raise wrong_at("output_format", "stands in output_config already")
        form = form or self.output_format
        return (
            OutputFormat()
            if form is None
            else OutputFormat("json_schema", json_text(form.schema, "the schema of the answer"))
        )


class CountRequest(_Conversation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/messages/count_tokens."""

    def generation(self, client: str, request: RequestId) -> GenerationRequest:
        """Return a generation whose prompt is to be counted. Raises RequestError."""
        if self.thinking is not None:
            self.thinking.check(None)
        return self._request(request, client, max_tokens=0)


class MessagesRequest(_Conversation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Annotated[dict[str, Any] | None, hint("it is a label")] = None
    service_tier: Annotated[Literal["auto", "standard_only"] | None, hint("there is one tier")] = None
    container: None = None
    inference_geo: Annotated[Literal["global"] | None, hint("it asks for no place")] = None
    diagnostics: None = None
    thread: dict[str, Any] | None = None

    def generation(self, client: str, request: RequestId) -> GenerationRequest:
        """Return the generation. More `max_tokens` than the context has room for is as many as it has. Raises RequestError.

        With 0 the prompt is only read, so that it is in the cache: one token is made, since that is what a stage can be asked
        for, and not shown.
        """
        if self.thread is not None:
            raise wrong_at("thread", "this node keeps no conversations; send the whole one without it")
        if not self.max_tokens:
            self._check_reading()
        elif self.thinking is not None:
            self.thinking.check(self.max_tokens)
        sampling = SamplingParameters(
            temperature=within("temperature", default(self.temperature, 1.0), 0, 2),
            top_p=within("top_p", default(self.top_p, 1.0), 0, 1, above=True),
            top_k=int(within("top_k", default(self.top_k, 0), 0, LAST_TOKEN)),
            seed=choice_seeds(None, 1)[0],
        )
        return self._request(
            request,
            client,
            sampling=sampling,
            as_advised=self.temperature is None and self.top_p is None and self.top_k is None,
            max_tokens=max(1, int(within("max_tokens", self.max_tokens, 0, LAST_TOKEN))),
            stop=stops(self.stop_sequences, "stop_sequences"),
        )

    def _check_reading(self) -> None:
        """Raise RequestError for what an answer without a single token cannot have."""
        forced = self.tool_choice is not None and self.tool_choice.type in ("any", "tool")
        form = self.output_format or (self.output_config.format if self.output_config is not None else None)
        wished = {
            "stream": self.stream,
            "thinking": self.thinking is not None and self.thinking.type != "disabled",
            "tool_choice": forced,
            "output_config.format": form is not None,
        }
        if name := next((name for name, is_wished in wished.items() if is_wished), None):
            raise wrong_at("max_tokens", f"with 0 there is no answer, so no {name!r} can be asked for")
