"""The request bodies. Unknown fields are refused by name; what is accepted without effect changes no answer."""

from typing import Any, Literal

import msgspec

from meshnode.api.anthropic.blocks import Block, Turn, flatten
from meshnode.api.anthropic.tools import ToolEntry, client_tools, server_tools, tool_use
from meshnode.api.openai.schemas import ModelName
from meshnode.api.parameters import LAST_TOKEN, choice_seeds, default, stops, within
from meshnode.errors import RequestError
from meshnode.types.conversation import OutputFormat
from meshnode.types.generation import GenerationRequest, SamplingParameters
from meshnode.types.ids import RequestId

__all__ = ["CountRequest", "MessagesRequest"]

_THINKS = {"enabled": True, "disabled": False, "adaptive": None}


class Thinking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to think. A budget is not kept to: `max_tokens` bounds thoughts and answer together."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class _Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both paths take."""

    model: ModelName
    messages: list[Turn]
    system: str | list[Block] | None = None
    tools: list[ToolEntry] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None  # where the form stood before output_config
    # What changes no answer here: hints to caches that are there anyway, labels, and places to run.
    cache_control: Any = None
    context_management: Any = None
    mcp_servers: Any = None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tools that nobody can run here."""
        return server_tools(self.tools or ())

    @property
    def hides_thinking(self) -> bool:
        """Whether thoughts are not shown."""
        return self.thinking is not None and self.thinking.display == "omitted"

    def _request(self, request: RequestId, client: str, **fields: Any) -> GenerationRequest:  # noqa: ANN401
        if self.mcp_servers:
            raise RequestError("mcp_servers: this node connects to no MCP servers", param="mcp_servers")
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
        config = dict(self.output_config or {})
        config.pop("effort", None)  # a model thinks or does not
        form = config.pop("format", None)
        if form is not None and self.output_format is not None:
            raise RequestError("output_format: stands in output_config already", param="output_format")
        form = form or self.output_format
        config.pop("task_budget", None)
        if config:
            raise RequestError(f"output_config.{min(config)[:40]}: is not known", param="output_config")
        if form is None:
            return OutputFormat()
        if (
            not isinstance(form, dict)
            or form.get("type") != "json_schema"
            or not isinstance(form.get("schema"), dict)
            or len(form) > 2
        ):
            raise RequestError("output_config.format: is of type json_schema and has a 'schema'", param="output_config")
        return OutputFormat("json_schema", msgspec.json.encode(form["schema"]).decode())


class CountRequest(_Conversation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/messages/count_tokens."""

    def generation(self, client: str, request: RequestId) -> GenerationRequest:
        """Return a generation whose prompt is to be counted. Raises RequestError."""
        return self._request(request, client, max_tokens=0)


class MessagesRequest(_Conversation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: None = None
    inference_geo: Literal["global"] | None = None
    speed: Literal["standard"] | None = None

    def generation(self, client: str, request: RequestId) -> GenerationRequest:
        """Return the generation. More `max_tokens` than the context has room for is as many as it has. Raises RequestError."""
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
            max_tokens=int(within("max_tokens", self.max_tokens, 1, LAST_TOKEN)),
            stop=stops(self.stop_sequences, "stop_sequences"),
        )
