"""One request in the words of every interface that makes text, and what each says in no interface's words."""

import json

import attrs

__all__ = ["ASKED", "Asked", "Told", "chat", "surfaces_for", "vectors"]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "is_big": {"type": "boolean"}},
    "required": ["city", "is_big"],
    "additionalProperties": False,
}
STRICT = {"name": "answer", "schema": SCHEMA, "strict": True}


@attrs.frozen
class Asked:
    """What is asked in every interface's own words; None is not said."""

    question: str
    limit: int  # tokens
    stop: str | None = None
    schema: dict | None = None


@attrs.frozen
class Told:
    """What an interface said, in no interface's words."""

    text: str
    is_cut: bool
    prompt_tokens: int
    completion_tokens: int


ASKED = {
    "ended": Asked("What is the capital of France?", 32),
    "cut": Asked("What is the capital of France?", 3),
    "stopped": Asked("What is the capital of France?", 32, stop=" Paris"),
    "formed": Asked("Which city is the capital of France?", 40, schema=SCHEMA),
}


def events(response):
    return [
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith("data: ") and line != "data: [DONE]"
    ]


def chat(http, asked, stream):
    body = {
        "model": "starter", "messages": [{"role": "user", "content": asked.question}], "temperature": 0,
        "max_tokens": asked.limit, "stop": asked.stop, "stream": stream,
    }  # fmt: skip
    if asked.schema:
        body["response_format"] = {"type": "json_schema", "json_schema": STRICT}
    if not stream:
        said = http.post("/v1/chat/completions", json=body).json()
        text, reason = said["choices"][0]["message"]["content"], said["choices"][0]["finish_reason"]
    else:
        body["stream_options"] = {"include_usage": True}
        *chunks, said = events(http.post("/v1/chat/completions", json=body))
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    return Told(text, reason == "length", said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"])


def responses(http, asked, stream):
    body = {
        "model": "starter", "input": asked.question, "temperature": 0, "max_output_tokens": asked.limit,
        "stream": stream, "store": False,
    }  # fmt: skip
    if asked.schema:
        body["text"] = {"format": {"type": "json_schema", **STRICT}}
    if not stream:
        said = http.post("/v1/responses", json=body).json()
        text = said["output"][0]["content"][0]["text"]
    else:
        told = events(http.post("/v1/responses", json=body))
        text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
        said = told[-1]["response"]
    return Told(text, said["status"] == "incomplete", said["usage"]["input_tokens"], said["usage"]["output_tokens"])


def messages(http, asked, stream):
    body = {
        "model": "starter", "messages": [{"role": "user", "content": asked.question}], "temperature": 0,
        "max_tokens": asked.limit, "stop_sequences": [asked.stop] if asked.stop else [], "stream": stream,
    }  # fmt: skip
    if asked.schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": asked.schema}}
    if not stream:
        said = http.post("/v1/messages", json=body).json()
        text, reason, usage = said["content"][0]["text"], said["stop_reason"], said["usage"]
    else:
        told = events(http.post("/v1/messages", json=body))
        text = "".join(event["delta"]["text"] for event in told if event["type"] == "content_block_delta")
        reason, usage = told[-2]["delta"]["stop_reason"], told[-2]["usage"]
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return Told(text, reason == "max_tokens", read, usage["output_tokens"])


def ollama(http, asked, stream, path, words, text_of):
    options = {"temperature": 0, "num_predict": asked.limit, "stop": asked.stop}
    body = {"model": "starter", "options": options, "format": asked.schema, "stream": stream, **words}
    lines = [json.loads(line) for line in http.post(path, json=body).text.splitlines()]
    text, last = "".join(map(text_of, lines)), lines[-1]
    return Told(text, last["done_reason"] == "length", last["prompt_eval_count"], last["eval_count"])


def ollama_chat(http, asked, stream):
    words = {"messages": [{"role": "user", "content": asked.question}]}
    return ollama(http, asked, stream, "/api/chat", words, lambda line: line["message"]["content"])


def ollama_generate(http, asked, stream):
    return ollama(http, asked, stream, "/api/generate", {"prompt": asked.question}, lambda line: line["response"])


def surfaces_for(asked):
    """Return the interfaces that can ask that; Responses have no stop sequences."""
    return (chat, messages, ollama_chat, ollama_generate, *([] if asked.stop else [responses]))


def vectors(http, texts):
    """Return the vectors of texts by OpenAI's and by Ollama's interface."""
    openai = http.post("/v1/embeddings", json={"model": "starter", "input": texts}).json()
    ollama = http.post("/api/embed", json={"model": "starter", "input": texts}).json()
    return [item["embedding"] for item in openai["data"]], ollama["embeddings"]
