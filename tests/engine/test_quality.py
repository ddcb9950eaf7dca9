"""The real starter against references nobody here wrote: exact float32 weights, and llama.cpp on the same file."""

import json
import math
import urllib.request
from pathlib import Path

import gguf
import pytest
import torch
import xllamacpp
from support.reference_model import reference
from support.stages import stage_of, tiny_manifest

from meshnode.engine.stage_model import Rows, StageModel

pytestmark = pytest.mark.starter
F = torch.nn.functional
TEXT = (Path(__file__).parents[1] / "data" / "alice.txt").read_text()
PROMPTS = {
    "chat": "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "system": "<|im_start|>system\nAnswer in one word.<|im_end|>\n<|im_start|>user\nColour of grass?<|im_end|>\n<|im_start|>assistant\n",
    "turns": "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello. How can I help?<|im_end|>\n<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n",
    "python": "def fibonacci(n):\n    ",
    "javascript": "// Sort an array of numbers\nfunction sort(values) {\n",
    "sql": "SELECT name, count(*) FROM users WHERE",
    "french": "La tour Eiffel est un monument situé à Paris. Elle a été construite",
    "german": "Die Katze sitzt auf dem Dach und",
    "spanish": "Había una vez un rey que",
    "chinese": "从前有一座山，山里有",
    "numbers": "1, 1, 2, 3, 5, 8, 13,",
    "list": "The planets of the solar system are:\n1. Mercury\n2.",
    "prose": TEXT[:1200],
    "long": TEXT[:5800],
}


@pytest.fixture(scope="module")
def stage(starter_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return StageModel.load(stage_of(tiny_manifest(starter_gguf, folder), folder))


@pytest.fixture(scope="module")
def llama_cpp(starter_gguf):
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = (
        str(starter_gguf),
        4096,
        1,
        -1,
    )
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    return xllamacpp.Server(parameters)


def answer(server, path, body):
    head = {"content-type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def tokenize(server, text):
    return answer(server, "/tokenize", {"content": text, "parse_special": True})["tokens"]


def logits_of(stage, tokens):
    cache = stage.open_cache(len(tokens))
    pieces = [stage.forward([Rows(cache, piece, "all")])[0] for piece in torch.tensor(tokens).split(256)]
    cache.close()
    return torch.cat(pieces)


def perplexity(logits, tokens):
    return math.exp(F.cross_entropy(logits[:-1], torch.tensor(tokens[1:])).item())


def test_perplexity_is_that_of_exact_weights(stage, starter_gguf, llama_cpp):
    tokens = tokenize(llama_cpp, TEXT)[:3072]
    assert len(tokens) >= 3000
    exact = perplexity(reference(starter_gguf, tokens), tokens)
    ours = perplexity(logits_of(stage, tokens), tokens)
    assert ours <= 1.005 * exact, f"{len(tokens)} tokens: exact {exact:.3f}, ours {ours:.3f}"  # 19.718 and 19.752


def test_greedy_answers_agree_with_llama_cpp(stage, starter_gguf, llama_cpp):
    assert len(PROMPTS) >= 12
    request = {"n_predict": 64, "temperature": 0, "return_tokens": True, "cache_prompt": False, "ignore_eos": True}
    for name, prompt in PROMPTS.items():
        tokens = tokenize(llama_cpp, prompt)
        theirs = answer(llama_cpp, "/completion", request | {"prompt": tokens})["tokens"]
        cache, ours = stage.open_cache(len(tokens) + 64), []
        logits = stage.forward([Rows(cache, torch.tensor(tokens))])[0]
        while len(ours) < 64:
            last = logits[-1].clone()
            last[0] = last[2] = -math.inf  # as ignore_eos does
            ours.append(int(last.argmax()))
            logits = stage.forward([Rows(cache, torch.tensor(ours[-1:]))])[0]
        cache.close()
        differ = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if differ is not None:
            exact = reference(starter_gguf, tokens + ours[:differ])[-1]
            exact[0] = exact[2] = -math.inf
            gap = abs(float(exact[ours[differ]] - exact[theirs[differ]]))
            assert gap < 0.5, f"{name}: token {differ} differs and is no near-tie: gap {gap:.2f}"


def test_the_reference_reads_the_same_file(starter_gguf):
    assert len(gguf.GGUFReader(starter_gguf).tensors) == 272
