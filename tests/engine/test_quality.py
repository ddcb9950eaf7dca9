"""The real starter against references nobody here wrote: exact float32 weights, and llama.cpp on the same file."""

import hashlib
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
EXACT = Path(__file__).parents[1] / "golden" / "perplexity.json"  # written by make_perplexity_golden.py
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
    exact = json.loads(EXACT.read_text())
    assert hashlib.blake2b(starter_gguf.read_bytes()).hexdigest() == exact["file"]
    tokens = tokenize(llama_cpp, TEXT)[: exact["tokens"]]
    assert len(tokens) == exact["tokens"] >= 3000
    ours = perplexity(logits_of(stage, tokens), tokens)
    assert ours <= 1.005 * exact["perplexity"], (
        f"{len(tokens)} tokens: exact {exact['perplexity']:.3f}, ours {ours:.3f}"
    )


def test_the_exact_perplexity_is_that_of_its_beginning(starter_gguf, llama_cpp):
    exact = json.loads(EXACT.read_text())
    tokens = tokenize(llama_cpp, TEXT)[: exact["beginning"]["tokens"]]
    found = perplexity(reference(starter_gguf, tokens), tokens)
    assert found == pytest.approx(exact["beginning"]["perplexity"], rel=1e-4)


def greedy(stage, prompts, length):
    """Return `length` greedy tokens for each prompt; all prompts step as one batch, which changes no row."""
    caches = [stage.open_cache(len(tokens) + length) for tokens in prompts]
    answers = [[] for _ in prompts]
    logits = [
        stage.forward([Rows(cache, torch.tensor(tokens))])[0] for cache, tokens in zip(caches, prompts, strict=True)
    ]
    while len(answers[0]) < length:
        for answer, row in zip(answers, logits, strict=True):
            answer.append(int(without_ends(row[-1]).argmax()))
        logits = stage.forward(
            [Rows(cache, torch.tensor(answer[-1:])) for cache, answer in zip(caches, answers, strict=True)]
        )
    for cache in caches:
        cache.close()
    return answers


def without_ends(logits):
    """Rule out what ends an answer, as llama.cpp's ignore_eos does."""
    allowed = logits.clone()
    allowed[0] = allowed[2] = -math.inf
    return allowed


def test_greedy_answers_agree_with_llama_cpp(stage, starter_gguf, llama_cpp):
    assert len(PROMPTS) >= 12
    request = {"n_predict": 64, "temperature": 0, "return_tokens": True, "cache_prompt": False, "ignore_eos": True}
    prompts = [tokenize(llama_cpp, prompt) for prompt in PROMPTS.values()]
    for name, tokens, ours in zip(PROMPTS, prompts, greedy(stage, prompts, 64), strict=True):
        theirs = answer(llama_cpp, "/completion", request | {"prompt": tokens})["tokens"]
        differ = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if differ is not None:
            exact = without_ends(reference(starter_gguf, tokens + ours[:differ], last=True)[0])
            gap = abs(float(exact[ours[differ]] - exact[theirs[differ]]))
            assert gap < 0.5, f"{name}: token {differ} differs and is no near-tie: gap {gap:.2f}"


def test_the_reference_reads_the_same_file(starter_gguf):
    assert len(gguf.GGUFReader(starter_gguf).tensors) == 272
