"""The real starter against references nobody here wrote: exact float32 weights, and llama.cpp on the same file."""

import hashlib
import json
import math
import urllib.request
from pathlib import Path

import pytest
import torch
import xllamacpp
from support.greedy import PROMPTS, TEXT, partings
from support.reference_model import load, reference
from support.stages import stage_of, tiny_manifest

from meshnode.engine.stage_model import Rows, StageModel

pytestmark = pytest.mark.starter
F = torch.nn.functional
EXACT = Path(__file__).parents[1] / "golden" / "perplexity.json"  # written by make_perplexity_golden.py


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
    # Two would spin, and wait for each other where something else runs.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
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
    assert len(tokens) == exact["tokens"] >= 1000  # the bench takes all 3,000 that there are
    ours = perplexity(logits_of(stage, tokens), tokens)
    assert ours <= 1.005 * exact["perplexity"], (
        f"{len(tokens)} tokens: exact {exact['perplexity']:.3f}, ours {ours:.3f}"
    )


def test_the_exact_perplexity_is_that_of_its_beginning(starter_gguf, llama_cpp):
    exact = json.loads(EXACT.read_text())
    tokens = tokenize(llama_cpp, TEXT)[: exact["beginning"]["tokens"]]
    found = perplexity(reference(starter_gguf, tokens), tokens)
    assert found == pytest.approx(exact["beginning"]["perplexity"], rel=1e-4)


def test_greedy_answers_agree_with_llama_cpp(stage, starter_gguf, llama_cpp):
    """With the beginnings of all but the longest; `nox -s bench -- --only quality` compares all, 64 tokens of each."""
    chosen = [name for name in PROMPTS if name != "long"]
    assert len(chosen) >= 12
    request = {"n_predict": 24, "temperature": 0, "return_tokens": True, "cache_prompt": False, "ignore_eos": True}
    prompts = [tokenize(llama_cpp, PROMPTS[name]) for name in chosen]
    answers = [answer(llama_cpp, "/completion", request | {"prompt": tokens})["tokens"] for tokens in prompts]
    assert {len(tokens) for tokens in answers} == {24}
    for name, parting in zip(chosen, partings(stage, starter_gguf, prompts, answers), strict=True):
        assert parting is None or parting.is_near_tie, f"{name}: {parting}"


def test_the_reference_reads_the_same_file(starter_gguf):
    weights, _ = load(starter_gguf)
    assert len(weights) == 272
