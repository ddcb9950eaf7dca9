"""One request in the words of every interface that makes text, and what each says in no interface's words."""

import json
from concurrent.futures import ThreadPoolExecutor

import attrs

__all__ = ["ASKED", "BEGINNINGS", "Asked", "Told", "chat", "told_by_all", "vectors"]

# Its 23 tokens, 11 times, with the 3 that begin a system message, fill the first page of the cache of prompts.
SENTENCE = " The old keeper of the lighthouse counts all the ships that go by, and writes each of them into a book."
QUESTION = "What is the capital of France?"
SCHEMA = {
    "type": "object",
    "properties": {"to": {"enum": ["Paris", "Rome"]}},
    "required": ["to"],
    "additionalProperties": False,
}
STRICT = {"name": "answer", "schema": SCHEMA, "strict": True}

# The same by the starter's template and vocabulary: the system message's beginning, the sentence, and what comes after it.
_BEGINNING = (1, 9690, 198)
_SENTENCE = (
    378, 1573, 40061, 282, 260, 33059, 11002, 511, 260, 7761, 338, 685, 411, 28, 284, 9095, 971, 282, 601, 618, 253, 1863, 30,
)  # fmt: skip
_END = (2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)  # fmt: skip


@attrs.frozen
class Asked:
    """What is asked in every interface's own words."""

    limit: int  # tokens
    stop: str | None = None
    is_formed: bool = False  # by the schema
    tools: str | None = None  # whether one is "offered" or must be "called"
    sentences: int = 11  # of the system message; 11 fill a page, and 16 two with a tool, so that little is left to read

    @property
    def system(self):
        return SENTENCE * self.sentences

    @property
    def messages(self):
        return [{"role": "user", "content": QUESTION}]

    def dialogue(self):
        return [{"role": "system", "content": self.system}, *self.messages]


@attrs.frozen
class Told:
    """What an interface said, in no interface's words."""

    text: str
    calls: tuple[tuple[str, dict], ...]
    reason: str  # in OpenAI's words
    prompt_tokens: int
    # Ollama does not say; over a mesh a long prompt's depends on which of its holders were asked before.
    cached_tokens: int | None = attrs.field(eq=False)
    completion_tokens: int


ASKED = {
    "ended": Asked(32),
    "cut": Asked(3),
    "stopped": Asked(32, stop=" Paris"),
    "formed": Asked(32, is_formed=True),
    "offered": Asked(3, tools="offered", sentences=16),
    "called": Asked(64, tools="called", sentences=16),
}
BEGINNINGS = (Asked(1), ASKED["offered"])
"""What has the beginnings of all prompts read."""


def events(response):
    return [
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith("data: ") and line != "data: [DONE]"
    ]


def _counts(usage):
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]


def chat(http, asked, stream):
    body = {
        "model": "starter", "messages": asked.dialogue(), "temperature": 0, "max_tokens": asked.limit, "stop": asked.stop,
        "stream": stream,
    }  # fmt: skip
    if asked.is_formed:
        body["response_format"] = {"type": "json_schema", "json_schema": STRICT}
    if asked.tools:
        body["tools"] = [{"type": "function", "function": {"name": "go", "parameters": SCHEMA}}]
        body["tool_choice"] = {"called": "required", "offered": "auto"}[asked.tools]
        body["parallel_tool_calls"] = asked.tools == "offered"
    if not stream:
        said = http.post("/v1/chat/completions", json=body).json()
        (choice,) = said["choices"]
        text, made, reason = (
            choice["message"]["content"],
            choice["message"].get("tool_calls", ()),
            choice["finish_reason"],
        )
        calls = tuple((call["function"]["name"], json.loads(call["function"]["arguments"])) for call in made)
    else:
        *chunks, said = events(
            http.post("/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}})
        )
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        text, reason = (
            "".join(delta.get("content") or "" for delta in deltas),
            chunks[-1]["choices"][0]["finish_reason"],
        )
        parts = [call for delta in deltas for call in delta.get("tool_calls", ())]
        calls = _joined(
            [(part["index"], part["function"].get("name"), part["function"]["arguments"]) for part in parts]
        )
    return Told(text or "", calls, reason, *_counts(said["usage"]))


def _joined(parts):
    """Return the calls of which parts were told: which, its name the first time, and more of its arguments."""
    names, arguments = {}, {}
    for index, name, more in parts:
        names.setdefault(index, name)
        arguments[index] = arguments.get(index, "") + more
    return tuple((names[index], json.loads(arguments[index])) for index in names)


def completions(http, asked, stream):
    body = {
        "model": "starter", "prompt": [*_BEGINNING, *_SENTENCE * asked.sentences, *_END], "temperature": 0,
        "max_tokens": asked.limit, "stop": asked.stop, "stream": stream,
    }  # fmt: skip
    if not stream:
        said = http.post("/v1/completions", json=body).json()
        chunks = [said]
    else:
        *chunks, said = events(http.post("/v1/completions", json=body | {"stream_options": {"include_usage": True}}))
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    return Told(text, (), chunks[-1]["choices"][0]["finish_reason"], *_counts(said["usage"]))


def responses(http, asked, stream):
    body = {
        "model": "starter", "instructions": asked.system, "input": QUESTION, "temperature": 0,
        "max_output_tokens": asked.limit, "stream": stream, "store": False,
    }  # fmt: skip
    if asked.is_formed:
        body["text"] = {"format": {"type": "json_schema", **STRICT}}
    if asked.tools:
        body["tools"] = [{"type": "function", "name": "go", "parameters": SCHEMA}]
        body["tool_choice"] = {"called": "required", "offered": "auto"}[asked.tools]
        body["parallel_tool_calls"] = asked.tools == "offered"
    if not stream:
        said = http.post("/v1/responses", json=body).json()
        items = said["output"]
        text = "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])
    else:
        told = events(http.post("/v1/responses", json=body))
        text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
        items = [event["item"] for event in told if event["type"] == "response.output_item.done"]
        said = told[-1]["response"]
    calls = tuple((item["name"], json.loads(item["arguments"])) for item in items if item["type"] == "function_call")
    reason = "length" if said["status"] == "incomplete" else "tool_calls" if calls else "stop"
    cached = said["usage"]["input_tokens_details"]["cached_tokens"]
    return Told(text, calls, reason, said["usage"]["input_tokens"], cached, said["usage"]["output_tokens"])


_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def messages(http, asked, stream):
    body = {
        "model": "starter", "system": asked.system, "messages": asked.messages, "temperature": 0,
        "max_tokens": asked.limit, "stop_sequences": [asked.stop] if asked.stop else [], "stream": stream,
    }  # fmt: skip
    if asked.is_formed:
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    if asked.tools:
        body["tools"] = [{"name": "go", "input_schema": SCHEMA}]
        body["tool_choice"] = {
            "called": {"type": "any", "disable_parallel_tool_use": True}, "offered": {"type": "auto"},
        }[asked.tools]  # fmt: skip
    if not stream:
        said = http.post("/v1/messages", json=body).json()
        blocks, reason, usage = said["content"], said["stop_reason"], said["usage"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        calls = tuple((block["name"], block["input"]) for block in blocks if block["type"] == "tool_use")
    else:
        told = events(http.post("/v1/messages", json=body))
        text = "".join(event["delta"].get("text", "") for event in told if event["type"] == "content_block_delta")
        begun = [event for event in told if event["type"] == "content_block_start"]
        names = [
            (event["index"], event["content_block"]["name"], "") for event in begun if "name" in event["content_block"]
        ]
        more = [event for event in told if event.get("delta", {}).get("type") == "input_json_delta"]
        calls = _joined([*names, *((event["index"], None, event["delta"]["partial_json"]) for event in more)])
        reason, usage = told[-2]["delta"]["stop_reason"], told[-2]["usage"]
    cached = usage["cache_read_input_tokens"]
    return Told(text, calls, _REASONS[reason], usage["input_tokens"] + cached, cached, usage["output_tokens"])


def _ollama(http, asked, stream, path, words, message_of):
    options = {"temperature": 0, "num_predict": asked.limit, "stop": asked.stop}
    form = SCHEMA if asked.is_formed else None
    body = {"model": "starter", "options": options, "format": form, "stream": stream, **words}
    lines = [json.loads(line) for line in http.post(path, json=body).text.splitlines()]
    said, last = [message_of(line) for line in lines], lines[-1]
    made = [call["function"] for message in said for call in message.get("tool_calls", ())]
    calls = tuple((call["name"], call["arguments"]) for call in made)
    reason = (
        "tool_calls" if calls and last["done_reason"] == "stop" else last["done_reason"]
    )  # Ollama has no word for it
    text = "".join(message["content"] for message in said)
    return Told(text, calls, reason, last["prompt_eval_count"], None, last["eval_count"])


def ollama_chat(http, asked, stream):
    words = {"messages": asked.dialogue()}
    if asked.tools:
        words["tools"] = [{"type": "function", "function": {"name": "go", "parameters": SCHEMA}}]
    return _ollama(http, asked, stream, "/api/chat", words, lambda line: line["message"])


def ollama_generate(http, asked, stream):
    words = {"system": asked.system, "prompt": QUESTION}
    return _ollama(http, asked, stream, "/api/generate", words, lambda line: {"content": line["response"]})


def surfaces_for(asked):
    """Return the interfaces that can ask that: Responses have no stop sequences, and Ollama cannot insist on a call."""
    if asked.tools:
        return (chat, messages, responses, *([ollama_chat] if asked.tools == "offered" else []))
    form = (chat, messages, ollama_chat, ollama_generate)
    return (*form, *([] if asked.is_formed else [completions]), *([] if asked.stop else [responses]))


def told_by_all(http, asked):
    """Ask through every interface, whole and streamed, all at once; return what each said, by its name."""
    ways = [(surface, how) for surface in surfaces_for(asked) for how in ("whole", "streamed")]
    with ThreadPoolExecutor(len(ways)) as pool:
        told = pool.map(lambda way: way[0](http, asked, way[1] == "streamed"), ways)
        return {(surface.__name__, how): each for (surface, how), each in zip(ways, told, strict=True)}


def vectors(http, texts):
    """Return the vectors of texts by OpenAI's and by Ollama's interface."""
    openai = http.post("/v1/embeddings", json={"model": "starter", "input": texts}).json()
    ollama = http.post("/api/embed", json={"model": "starter", "input": texts}).json()
    return [item["embedding"] for item in openai["data"]], ollama["embeddings"]
