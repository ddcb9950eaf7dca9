"""The tools: what each is called, takes and does. Nothing here knows the protocol."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import msgspec

from meshnode.api.parameters import within
from meshnode.api.ports import ApiDependencies
from meshnode.errors import RequestError
from meshnode.types.conversation import ChatMessage
from meshnode.types.generation import Delta, GenerationRequest, SamplingParameters
from meshnode.types.ids import new_request_id

__all__ = ["TOOLS", "NodeTool", "UnknownTool", "call_tool"]

_MAX_PROMPTS, _MAX_MODELS, _MAX_TOKENS = 64, 8, 1 << 20
_CLIENT = "mcp"

_MODEL = {
    "type": "string",
    "description": "Name of a model; the tool `models` lists them. Default: one that is loaded.",
}
_SYSTEM = {"type": "string", "description": "System message."}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": _MAX_TOKENS, "description": "Tokens of an answer at most."}
_TEMPERATURE = {"type": "number", "minimum": 0, "maximum": 2, "description": "0 is the most likely answer."}
_OPTIONS = {"system": _SYSTEM, "max_tokens": _LIMIT, "temperature": _TEMPERATURE}


class UnknownTool(LookupError):
    """No tool has that name; the message lists those there are."""


class Chat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments of `chat`."""

    prompt: str
    model: str = "auto"
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


class Compare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments of `compare`."""

    prompt: str
    models: list[str]
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


class BatchPrompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Arguments of `batch_prompts`."""

    prompts: list[str]
    model: str = "auto"
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No arguments."""


async def _chat(asked: Chat, dependencies: ApiDependencies) -> str:
    (answer,) = await _answers([_request(asked, asked.model, asked.prompt)], dependencies)
    return answer


async def _compare(asked: Compare, dependencies: ApiDependencies) -> object:
    if not 1 <= len(asked.models) <= _MAX_MODELS:
        raise RequestError(f"'models' holds 1 to {_MAX_MODELS} names, not {len(asked.models)}", param="models")
    answers = await _answers([_request(asked, model, asked.prompt) for model in asked.models], dependencies)
    return [{"model": model, "answer": answer} for model, answer in zip(asked.models, answers, strict=True)]


async def _batch(asked: BatchPrompts, dependencies: ApiDependencies) -> object:
    if not 1 <= len(asked.prompts) <= _MAX_PROMPTS:
        raise RequestError(f"'prompts' holds 1 to {_MAX_PROMPTS} texts, not {len(asked.prompts)}", param="prompts")
    answers = await _answers([_request(asked, asked.model, prompt) for prompt in asked.prompts], dependencies)
    return [{"prompt": prompt, "answer": answer} for prompt, answer in zip(asked.prompts, answers, strict=True)]


async def _models(_asked: Nothing, dependencies: ApiDependencies) -> object:
    return [attrs.asdict(model) for model in dependencies.models()]


async def _node_info(_asked: Nothing, dependencies: ApiDependencies) -> object:
    return {name: value for name, value in dependencies.status().items() if name != "peers"}


async def _mesh_status(_asked: Nothing, dependencies: ApiDependencies) -> object:
    return {"peers": dependencies.mesh.peers(), "models": await _models(_asked, dependencies)}


def _request(asked: Chat | Compare | BatchPrompts, model: str, prompt: str) -> GenerationRequest:
    system = () if asked.system is None else (ChatMessage("system", asked.system),)
    sampling = SamplingParameters()
    if asked.temperature is not None:
        sampling = SamplingParameters(temperature=within("temperature", asked.temperature, 0, 2))
    limit = None if asked.max_tokens is None else int(within("max_tokens", asked.max_tokens, 1, _MAX_TOKENS))
    return GenerationRequest(
        id=new_request_id(),
        model=model,
        messages=(*system, ChatMessage("user", prompt)),
        sampling=sampling,
        as_advised=asked.temperature is None,
        max_tokens=limit,
        client=_CLIENT,
    )


async def _answers(requests: list[GenerationRequest], dependencies: ApiDependencies) -> list[str]:
    """Return the whole answers, in the order of the requests. Cancellation ends the generations."""
    texts: list[list[str]] = [[] for _ in requests]
    async with dependencies.generate(requests) as events:
        async for index, event in events:
            if isinstance(event, Delta):
                texts[index].append(event.text)
    return ["".join(pieces) for pieces in texts]


@attrs.frozen
class NodeTool:
    """One tool."""

    name: str
    description: str
    properties: Mapping[str, object]
    required: tuple[str, ...]
    arguments: type[msgspec.Struct]
    run: Callable[[Any, ApiDependencies], Awaitable[object]]  # returns a text, or a JSON value
    reads_only: bool = False

    @property
    def schema(self) -> dict[str, object]:
        """JSON Schema of the arguments."""
        found: dict[str, object] = {
            "type": "object",
            "properties": dict(self.properties),
            "additionalProperties": False,
        }
        return found | ({"required": list(self.required)} if self.required else {})


def _texts(what: str, limit: int) -> dict[str, object]:
    return {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": limit, "description": what}


_PROMPT = {"type": "string", "description": "What to ask."}

TOOLS: tuple[NodeTool, ...] = (
    NodeTool(
        "chat",
        "Ask a model of this node or its mesh.",
        {"prompt": _PROMPT, "model": _MODEL, **_OPTIONS},
        ("prompt",),
        Chat,
        _chat,
    ),
    NodeTool(
        "compare",
        "Ask several models the same.",
        {"prompt": _PROMPT, "models": _texts("Names of models.", _MAX_MODELS), **_OPTIONS},
        ("prompt", "models"),
        Compare,
        _compare,
    ),
    NodeTool(
        "batch_prompts",
        "Ask one model many things at once.",
        {"prompts": _texts("What to ask.", _MAX_PROMPTS), "model": _MODEL, **_OPTIONS},
        ("prompts",),
        BatchPrompts,
        _batch,
    ),
    NodeTool("models", "List the models that can be asked.", {}, (), Nothing, _models, reads_only=True),
    NodeTool("node_info", "Say what this node is and does.", {}, (), Nothing, _node_info, reads_only=True),
    NodeTool("mesh_status", "Say who is in the mesh, and what models it has.", {}, (), Nothing, _mesh_status, reads_only=True),
)  # fmt: skip

_BY_NAME = {tool.name: tool for tool in TOOLS}


async def call_tool(name: str, arguments: Mapping[str, object] | None, dependencies: ApiDependencies) -> object:
    """Call a tool; return a text, or a JSON value.

    Raises UnknownTool, RequestError for arguments that do not fit, and what a generation raises.
    """
    tool = _BY_NAME.get(name)
    if tool is None:
        raise UnknownTool(f"there is no tool {name[:80]!r}; there are: {', '.join(_BY_NAME)}")
    try:
        asked = msgspec.convert(arguments or {}, tool.arguments)
    except msgspec.ValidationError as error:
        raise RequestError(f"the arguments of {name!r} do not fit: {error}") from error
    return await tool.run(asked, dependencies)
