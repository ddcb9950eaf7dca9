"""The request body of chat completions. Unknown fields are refused by name; nothing is accepted and ignored."""

from collections.abc import Mapping
from typing import Annotated, Any

import attrs
import msgspec

from meshnode.api.hints import CacheHint, Label, hint
from meshnode.api.openai.messages import Message, flatten
from meshnode.api.openai.sampling import CacheOptions, SamplingFields
from meshnode.api.openai.tools import ToolEntry, function_tools, others_among, output_format, tool_use
from meshnode.api.parameters import LAST_TOKEN, default, within
from meshnode.errors import RequestError
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import RequestId

__all__ = ["ChatRequest", "ModelName", "numbered", "thinking_of"]

ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""Known fields for what this node cannot do, and the values of them that ask for nothing."""

_EFFORTS = {"none": False, "minimal": True, "low": True, "medium": True, "high": True, "xhigh": True, "max": True}


class TemplateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What vLLM and others let through to a template; of it, whether to think."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    model: ModelName
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolEntry] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None  # models think or do not: "none" is no, any other yes
    chat_template_kwargs: TemplateOptions | None = None
    metadata: Annotated[dict[str, str] | None, hint("it is a label")] = None
    safety_identifier: Label = None
    prompt_cache_key: CacheHint = None
    prompt_cache_retention: CacheHint = None
    prompt_cache_options: Annotated[CacheOptions | None, hint("every prefix is cached, whatever it says")] = None
    # Taken when they ask for nothing, else refused: _HARMLESS.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None
    web_search_options: Any = None

    def generations(self, client: str, request: RequestId) -> list[GenerationRequest]:
        """Return one generation per choice. Raises RequestError naming the field that is wrong or not supported."""
        self._refuse_unsupported()
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("'top_logprobs' goes with 'logprobs': true", param="top_logprobs")
        top = None if not self.logprobs else int(within("top_logprobs", self.top_logprobs or 0, 0, 20))
        tools = tool_use(function_tools(self.tools or ()), self.tool_choice, parallel=self.parallel_tool_calls)
        first = GenerationRequest(
            id=request,
            model=self.model,
            messages=flatten(self.messages),
            as_advised=self.leaves_sampling_to_the_model,
            max_tokens=self._max_tokens(),
            stop=self.stop_sequences(),
            client=client,
            tools=tools,
            output=output_format(self.response_format),
            thinking=self._thinking(),
        )
        return numbered([attrs.evolve(first, sampling=sampling) for sampling in self.samplings(top)])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not taken as it is meant."""
        return others_among(self.tools or ())

    def _refuse_unsupported(self) -> None:
        for name, harmless in _HARMLESS.items():
            value = getattr(self, name)
            if value not in harmless:
                accepted = [msgspec.json.encode(value).decode() for value in harmless if value not in (None, [])]
                rest = f"; {' and '.join(accepted)} {'are' if len(accepted) > 1 else 'is'}" if accepted else ""
                raise RequestError(f"{_asked(name, value)} is not supported by this node{rest}", param=name)
        if self.stream_options is not None and not self.stream:
            raise RequestError("'stream_options' goes with 'stream': true", param="stream_options")

    def _thinking(self) -> bool | None:
        options = self.chat_template_kwargs
        if options is not None and (said := default(options.enable_thinking, options.thinking)) is not None:
            return bool(said)
        return thinking_of(self.reasoning_effort, "reasoning_effort")

    def _max_tokens(self) -> int | None:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("give 'max_completion_tokens' or 'max_tokens', not both", param="max_tokens")
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        value = default(self.max_completion_tokens, self.max_tokens)
        return None if value is None else int(within(name, value, 1, LAST_TOKEN))


def numbered(requests: list[GenerationRequest]) -> list[GenerationRequest]:
    """Return generations that share an id each with one of its own; the first keeps it."""
    return [
        request if index == 0 else attrs.evolve(request, id=RequestId(f"{request.id}-{index}"))
        for index, request in enumerate(requests)
    ]


def thinking_of(effort: str | None, name: str) -> bool | None:
    """Return whether an effort asks for thought; None leaves it to the model. Raises RequestError."""
    if effort is None:
        return None
    if effort not in _EFFORTS:
        raise RequestError(f"{name!r} is one of {', '.join(_EFFORTS)}, not {effort[:40]!r}", param=name)
    return _EFFORTS[effort]


def _asked(name: str, value: object) -> str:
    """Name the field, with its value where that is short."""
    kind = value.get("type") if isinstance(value, dict) else value
    shown = msgspec.json.encode(kind).decode() if isinstance(kind, str | bool) else ""
    return f"'{name}': {shown[:60]}" if shown else f"'{name}'"
