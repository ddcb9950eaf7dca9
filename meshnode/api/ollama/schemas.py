"""The bodies of Ollama's requests. Unknown fields are refused by name; nothing is accepted and ignored."""

from typing import Annotated, Any, ClassVar

import attrs
import msgspec

from meshnode.api.bodies import json_text
from meshnode.api.hints import hint
from meshnode.api.ollama.messages import Message, flatten
from meshnode.api.ollama.options import KeepAlive, Options
from meshnode.api.openai.schemas import ModelName, thinking_of
from meshnode.api.openai.tools import ToolEntry, function_tools, others_among
from meshnode.api.parameters import within
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage, OutputFormat, ToolUse
from meshnode.types.generation import GenerationRequest
from meshnode.types.ids import RequestId

__all__ = ["ChatRequest", "GenerateRequest", "GenerationFields", "ShowRequest"]


class GenerationFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What chat and generate have in common."""

    model: ModelName
    stream: bool | None = True
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    keep_alive: KeepAlive = None
    # A prompt that does not fit is refused, never cut; these are taken when they do not ask for it.
    truncate: bool | None = None
    shift: bool | None = None

    @property
    def asks_to_unload(self) -> bool:
        """Whether 'keep_alive' says that the model is to go at once."""
        return self.keep_alive not in (None, "") and not str(self.keep_alive).strip("0.smh")

    def base(self, client: str, request: RequestId) -> GenerationRequest:
        """Return the generation, still without a prompt. Raises RequestError."""
        for name in ("truncate", "shift"):
            if getattr(self, name):
                raise RequestError(f"{name!r} is not supported: what does not fit the context is refused", param=name)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("'top_logprobs' goes with 'logprobs': true", param="top_logprobs")
        options = self.options or Options()
        top = int(within("top_logprobs", self.top_logprobs or 0, 0, 20)) if self.logprobs else None
        return GenerationRequest(
            id=request,
            model=self.model,
            sampling=options.sampling(top),
            as_advised=options.leaves_sampling_to_the_model,
            max_tokens=options.max_tokens,
            stop=options.stop_sequences(),
            client=client,
            output=self._output(),
            thinking=thinking_of(self.think, "think") if isinstance(self.think, str) else self.think,
        )

    def _output(self) -> OutputFormat:
        if isinstance(self.format, dict):
            return OutputFormat("json_schema", json_text(self.format, "the schema of the answer", "format"))
        if self.format in (None, ""):
            return OutputFormat()
        if self.format != "json":
            raise RequestError("'format' is 'json' or a JSON schema", param="format")
        return OutputFormat("json_object")


class ChatRequest(GenerationFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /api/chat. Without messages it loads the model."""

    messages: list[Message] | None = None
    tools: list[ToolEntry] | None = None

    @property
    def only_loads(self) -> bool:
        """Whether there is nothing to answer."""
        return not self.messages

    def generation(self, client: str, request: RequestId) -> GenerationRequest:
        """Return the generation. Raises RequestError naming the field that is wrong or not supported."""
        tools, base = ToolUse(function_tools(self._typed_tools())), self.base(client, request)
        return attrs.evolve(base, messages=flatten(self.messages or ()), tools=tools)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not taken as it is meant."""
        return others_among(self._typed_tools())

    def _typed_tools(self) -> list[ToolEntry]:
        """Return the tools, those of no type as functions: Ollama never asks for it, so clients leave it out."""
        return [entry if entry.get("type") else entry | {"type": "function"} for entry in self.tools or ()]


class GenerateRequest(GenerationFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /api/generate. Without a prompt it loads the model."""

    prompt: str | None = ""
    system: str | None = None
    raw: bool | None = False  # the prompt as it is, its control tokens included, without a chat template
    # Taken when they ask for nothing, else refused.
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[Any] | None = None
    warnings: ClassVar[tuple[str, ...]] = ()  # everything is taken as it is meant, or refused

    @property
    def only_loads(self) -> bool:
        """Whether there is nothing to answer."""
        return not self.prompt

    def generation(self, client: str, request: RequestId) -> GenerationRequest:
        """Return the generation. Raises RequestError naming the field that is wrong or not supported."""
        self._refuse_unsupported()
        base, prompt = self.base(client, request), self.prompt or ""
        if self.raw:
            return attrs.evolve(base, prompt=prompt, parse_special=True)
        system = (ChatMessage("system", self.system),) if self.system else ()
        return attrs.evolve(base, messages=(*system, ChatMessage("user", prompt)))

    def _refuse_unsupported(self) -> None:
        reasons = {
            "suffix": "its models write forwards",
            "template": "a model's own template is used; with 'raw' none is",
            "context": "send the conversation to /api/chat",
            "images": "none of its models sees images",
        }
        for name, reason in reasons.items():
            if getattr(self, name):
                raise RequestError(f"{name!r} is not supported by this node: {reason}", param=name)
        for name in ("system", "think"):
            if self.raw and getattr(self, name):
                raise RequestError(f"{name!r} needs a template, and 'raw' says that there is none", param=name)


class ShowRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /api/show. 'name' is what 'model' was called before."""

    model: str | None = None
    name: str | None = None
    verbose: Annotated[bool | None, hint("nothing is left out without it")] = None
    # What the command line sends empty.
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None

    @property
    def wanted(self) -> str:
        """The model's name. Raises RequestError."""
        for field in ("system", "template", "options"):
            if getattr(self, field):
                raise RequestError(f"{field!r} is not supported by this node", param=field)
        if wanted := self.model or self.name:
            return wanted
        raise RequestError("'model' is needed and not there", param="model")
