"""llama.cpp, in this process, through the xllamacpp package."""

import json
import math
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import xllamacpp


def server(path: Path, threads: int, context: int, parallel: int = 1) -> xllamacpp.Server:
    """Load a GGUF file with llama.cpp's own defaults, for `parallel` sequences that share `context` positions."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = (
        str(path),
        context,
        parallel,
        -1,
    )
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(parameters)


def tokenize(llama: xllamacpp.Server, text: str) -> list[int]:
    """Return the ids of a text."""
    return _post(llama, "/tokenize", {"content": text, "parse_special": True})["tokens"]


def greedy(llama: xllamacpp.Server, prompt: Sequence[int], count: int) -> list[int]:
    """Return the `count` likeliest tokens, one after the other, none of which ends the answer."""
    request = {
        "prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False, "ignore_eos": True,
    }  # fmt: skip
    return _post(llama, "/completion", request)["tokens"]


def tokens_per_second(llama: xllamacpp.Server, prompt: Sequence[int], count: int) -> tuple[float, float]:
    """Return the speeds of prefill and decode, as llama.cpp times them itself."""
    request = {"prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    timings = llama.handle_completions(request)["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


def perplexity(llama: xllamacpp.Server, tokens: Sequence[int]) -> float:
    """Return the perplexity of tokens[1:].

    A grammar leaves it only the next token of the text, and the log-probability that it reports for a sampled token is that
    of its bare logits, before grammar, bias and temperature.
    """
    request = {
        "prompt": [tokens[0]],
        "n_predict": len(tokens) - 1,
        "grammar": "root ::= " + " ".join(f"<[{token}]>" for token in tokens[1:]),
        "temperature": 0,
        "n_probs": 1,
        "cache_prompt": False,
    }
    said = llama.handle_completions(request)["choices"][0]["logprobs"]["content"]
    if [token["id"] for token in said] != list(tokens[1:]):
        raise SystemExit("llama.cpp did not follow the text it was to be measured on")
    return math.exp(-sum(token["logprob"] for token in said) / len(said))


def _post(llama: xllamacpp.Server, path: str, body: object) -> dict[str, list[int]]:
    head = {"content-type": "application/json"}
    request = urllib.request.Request(llama.listening_address + path, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)
