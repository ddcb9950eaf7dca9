"""No field is dropped in silence: each has an effect, is refused by its name, or is marked as a hint that changes no answer.

What the SDKs can send is in their own types, so a field that a new version brings is refused by its name until it is one of ours.
"""

import attrs
import msgspec
import pytest
from anthropic.types import MessageCountTokensParams, MessageCreateParams
from anthropic.types.beta import MessageCountTokensParams as BetaCountParams
from anthropic.types.beta import MessageCreateParams as BetaCreateParams
from openai.types import CompletionCreateParams, EmbeddingCreateParams
from openai.types.chat import CompletionCreateParams as ChatParams
from openai.types.responses import ResponseCreateParams
from support.api import FakeRouter

from meshnode.api.anthropic.schemas import CountRequest, MessagesRequest
from meshnode.api.ollama.embeddings import EmbedRequest, OldEmbedRequest
from meshnode.api.ollama.options import Options
from meshnode.api.ollama.schemas import ChatRequest as OllamaChat
from meshnode.api.ollama.schemas import GenerateRequest
from meshnode.api.openai.completions import CompletionRequest
from meshnode.api.openai.embeddings import EmbeddingsRequest
from meshnode.api.openai.schemas import ChatRequest
from meshnode.api.responses.schemas import ResponseRequest
from meshnode.types.generation import Delta

HI, OTHER = [{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]
FORM = {"type": "json_schema", "schema": {"type": "object"}}
FUNCTION = {"type": "function", "function": {"name": "add"}}
FLAT, OURS = {"type": "function", "name": "add"}, {"name": "add", "input_schema": {"type": "object"}}
CACHE = {
    "safety_identifier": "x", "prompt_cache_key": "x", "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"}, "user": "x",
}  # fmt: skip
SAMPLING = {
    "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
    "seed": 3, "max_tokens": 5, "stop": ["x"], "presence_penalty": 1, "frequency_penalty": 1, "logit_bias": {"5": 1}, "n": 2,
}  # fmt: skip
OPTIONS = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 3, "num_predict": 5, "stop": ["x"],
    "presence_penalty": 1, "frequency_penalty": 1, "repeat_last_n": 3, "repeat_penalty": 1.1, "typical_p": 0.5,
    "tfs_z": 0.5, "mirostat": 1, "mirostat_tau": 5, "mirostat_eta": 0.1, "num_ctx": 99, "num_keep": 4, "num_batch": 8,
    "num_gpu": 1, "main_gpu": 1, "num_thread": 3, "numa": True, "low_vram": True, "f16_kv": False, "logits_all": True,
    "vocab_only": True, "use_mmap": False, "use_mlock": True, "embedding_only": True, "penalize_newline": False,
}  # fmt: skip
OLLAMA = {
    "model": "other", "stream": False, "format": "json", "options": {"num_predict": 5}, "think": True, "logprobs": True,
    "top_logprobs": 2, "keep_alive": "5m", "truncate": True, "shift": True,
}  # fmt: skip
CONVERSATION = {
    "model": "other", "messages": OTHER, "system": "x", "tools": [OURS], "tool_choice": {"type": "any"},
    "thinking": {"type": "disabled"}, "output_config": {"format": FORM}, "output_format": FORM,
    "cache_control": {"type": "ephemeral"}, "context_management": {"edits": []}, "mcp_servers": [{"url": "x"}],
    "speed": "standard",
}  # fmt: skip


@attrs.frozen
class Surface:
    """A path: what a request holds at least, a value of every field, and what has to be there for some of them to mean anything."""

    kind: type
    least: dict
    values: dict
    needs: dict = attrs.field(factory=dict)
    sdk: tuple = ()
    inside: str | None = None  # the field that holds the fields


SURFACES = {
    "/v1/chat/completions": Surface(
        ChatRequest, {"messages": HI},
        {
            **SAMPLING, **CACHE, "model": "other", "messages": OTHER, "max_completion_tokens": 5, "logprobs": True,
            "top_logprobs": 2, "tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False,
            "response_format": {"type": "json_object"}, "reasoning_effort": "none",
            "chat_template_kwargs": {"enable_thinking": True}, "metadata": {"a": "b"}, "audio": {"voice": "x"},
            "function_call": "auto", "functions": [{"name": "f"}], "modalities": ["audio"], "prediction": {"type": "content"},
            "service_tier": "flex", "store": True, "verbosity": "low", "web_search_options": {},
        },
        {
            "tool_choice": {"tools": [FUNCTION]}, "parallel_tool_calls": {"tools": [FUNCTION]},
            "top_logprobs": {"logprobs": True}, "stream_options": {"stream": True},
        },
        (ChatParams,),
    ),
    "/v1/completions": Surface(
        CompletionRequest, {"prompt": "hi"},
        {
            **SAMPLING, "user": "x", "model": "other", "prompt": "ho", "logprobs": 1, "echo": True, "suffix": "x", "best_of": 2,
        },
        {"stream_options": {"stream": True}},
        (CompletionCreateParams,),
    ),
    "/v1/embeddings": Surface(
        EmbeddingsRequest, {"input": "hi"},
        {"model": "other", "input": "ho", "encoding_format": "base64", "dimensions": 1, "user": "x"},
        sdk=(EmbeddingCreateParams,),
    ),
    "/v1/responses": Surface(
        ResponseRequest, {"input": "hi"},
        {
            **CACHE, "model": "other", "input": "ho", "instructions": "x", "previous_response_id": "resp_x", "stream": True,
            "store": False, "background": True, "max_output_tokens": 5, "temperature": 0.5, "top_p": 0.5, "tools": [FLAT],
            "tool_choice": "required", "parallel_tool_calls": False, "text": {"format": {"type": "json_object"}},
            "reasoning": {"effort": "none"}, "top_logprobs": 2, "include": ["message.output_text.logprobs"],
            "metadata": {"a": "b"}, "client_metadata": {"a": "b"}, "max_tool_calls": 3, "service_tier": "flex",
            "stream_options": {"include_obfuscation": False}, "truncation": "auto", "conversation": "x", "prompt": {"id": "x"},
        },
        {"tool_choice": {"tools": [FLAT]}, "parallel_tool_calls": {"tools": [FLAT]}},
        (ResponseCreateParams,),
    ),
    "/v1/messages": Surface(
        MessagesRequest, {"messages": HI, "max_tokens": 9},
        {
            **CONVERSATION, "max_tokens": 5, "stream": True, "stop_sequences": ["x"], "temperature": 0.5, "top_p": 0.5, "top_k": 3,
            "metadata": {"user_id": "x"}, "service_tier": "auto", "container": "x", "inference_geo": "global",
            "diagnostics": {}, "thread": {"id": "x"},
        },
        {"tool_choice": {"tools": [OURS]}},
        (MessageCreateParams, BetaCreateParams),
    ),
    "/v1/messages/count_tokens": Surface(
        CountRequest, {"messages": HI}, CONVERSATION, {"tool_choice": {"tools": [OURS]}},
        (MessageCountTokensParams, BetaCountParams),
    ),
    "/api/chat": Surface(
        OllamaChat, {"messages": HI}, {**OLLAMA, "messages": OTHER, "tools": [FUNCTION]}, {"top_logprobs": {"logprobs": True}}
    ),
    "/api/generate": Surface(
        GenerateRequest, {"prompt": "hi"},
        {
            **OLLAMA, "prompt": "ho", "system": "x", "raw": True, "suffix": "x", "template": "x", "context": [1], "images": ["x"],
        },
        {"top_logprobs": {"logprobs": True}},
    ),
    "/api/chat options": Surface(
        Options, {"messages": HI}, OPTIONS, {"repeat_last_n": {"presence_penalty": 1}}, inside="options"
    ),
    "/api/embed": Surface(
        EmbedRequest, {"input": "hi"},
        {
            "model": "other", "input": "ho", "truncate": False, "dimensions": 1, "options": {"num_ctx": 9}, "keep_alive": "5m",
        },
    ),
    "/api/embeddings": Surface(
        OldEmbedRequest, {"prompt": "hi"}, {"model": "other", "prompt": "ho", "options": {"num_ctx": 9}, "keep_alive": "5m"}
    ),
}  # fmt: skip


def hints(kind):
    """Return the fields that are marked, and what is said of them."""
    found = msgspec.inspect.type_info(kind).fields
    marked = {field.encode_name: field.type for field in found if isinstance(field.type, msgspec.inspect.Metadata)}
    return {
        name: kind.extra_json_schema["description"] for name, kind in marked.items() if (kind.extra or {}).get("hint")
    }


def fields_of(params):
    """Return the fields of an SDK's parameters: a type, or a union of those for whole and for streamed answers."""
    kinds = getattr(params, "__args__", (params,))
    return {
        name for kind in kinds for base in (kind, *kind.__orig_bases__) for name in getattr(base, "__annotations__", ())
    }


async def outcome(node, http, path, body):
    """Return what came of a request: what the router was asked, and what the client was told, without what changes each time."""
    begun = len(node.router.requests)
    answer = await http.post(path, json=body)
    wanted = (body.get("options") or body).get("seed")
    asked = [
        attrs.evolve(
            each, id="", sampling=attrs.evolve(each.sampling, seed=wanted if each.sampling.seed == wanted else 0)
        )
        for requests in node.router.requests[begun:]
        for each in requests
    ]
    told = answer.text
    if answer.headers["content-type"] == "application/json":
        told = {
            name: value
            for name, value in answer.json().items()
            if name not in ("id", "created", "created_at") and not name.endswith("_duration")
        }
    return answer.status_code, asked, told


def request(surface, fields):
    given = fields if surface.inside is None else {surface.inside: fields}
    return {"model": "tiny", **surface.least, **given}


@pytest.mark.parametrize("name", SURFACES)
async def test_every_field_has_an_effect_or_is_refused_by_name_or_is_a_hint(serve, name):
    path, it = name.partition(" ")[0], SURFACES[name]
    fields = [field.encode_name for field in msgspec.structs.fields(it.kind)]
    assert set(fields) == set(it.values), "a field needs a value to be tried with"
    harmless, plain = hints(it.kind), {}
    words = [Delta(vector=bytes(4) + b"\x00\x00\x80?")] if "embed" in path else ["Hello"]
    async with serve(FakeRouter(words=words)) as node, node.client() as http:
        for field in fields:
            needs = it.needs.get(field, {})
            if str(needs) not in plain:
                plain[str(needs)] = await outcome(node, http, path, request(it, needs))
            without = plain[str(needs)]
            status, asked, told = await outcome(node, http, path, request(it, {**needs, field: it.values[field]}))
            assert without[0] == 200
            if field in harmless:
                assert (status, asked) == (200, without[1]), f"{field} is said to change nothing"
            elif status == 200:
                assert (asked, told) != without[1:], f"{field} changes nothing"
            else:
                assert status in (400, 404)
                assert field in str(told["error"]), f"{field} is refused without being named"
                assert asked == []
        begun, theirs = len(node.router.requests), {field for params in it.sdk for field in fields_of(params)}
        assert theirs & set(fields) or not it.sdk, "the SDK's types are read"
        for field in [*sorted(theirs - set(fields)), "a_field_of_tomorrow"]:
            answer = await http.post(path, json=request(it, {field: {}}))
            assert answer.status_code == 400, field
            assert f"{field} is not supported" in answer.text.replace("'", "").replace(":", "")
        assert len(node.router.requests) == begun


async def test_the_openapi_document_says_of_every_hint_that_it_is_one(serve):
    async with serve() as node, node.client() as http:
        said = (await http.get("/openapi.json")).json()["components"]["schemas"]
    for it in SURFACES.values():
        shown = next(shape for shape in said.values() if set(shape.get("properties", ())) == set(it.values))
        for field, why in hints(it.kind).items():
            assert shown["properties"][field]["description"] == why
            assert why.startswith("Changes no answer here: ")


def structs_in(kind):
    """Yield the objects that a value of this type may hold, itself among them."""
    if isinstance(kind, msgspec.inspect.StructType):
        yield kind
        parts = [field.type for field in kind.fields]
    else:
        names = ("type", "types", "item_type", "item_types", "value_type")
        held = [getattr(kind, name) for name in names if hasattr(kind, name)]
        parts = [part for each in held for part in (each if isinstance(each, tuple) else (each,))]
    for part in parts:
        yield from structs_in(part)


@pytest.mark.parametrize("name", SURFACES)
def test_no_object_of_a_body_takes_fields_that_nobody_knows(name):
    found = list(structs_in(msgspec.inspect.type_info(SURFACES[name].kind)))
    assert [kind.cls.__name__ for kind in found if not kind.forbid_unknown_fields] == []
