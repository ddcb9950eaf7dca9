"""Perplexity over one text in one context: ours, exact float32 of the dequantised weights, llama.cpp's; and greedy answers."""

import math
from pathlib import Path

import llama_cpp
import torch
from results import Report, Row
from setting import Setting
from support.greedy import NEAR_TIE, PROMPTS, partings
from support.reference_model import reference

from meshnode.engine.stage_model import Rows

TEXT = Path(__file__).parents[1] / "data" / "alice.txt"
ANSWER = 64  # greedy tokens
HOW = (
    "perplexity of tests/data/alice.txt, {count} tokens in one context; llama.cpp is made to follow the text token by token, "
    "by a grammar, and reports the log-probability of each; greedy answers of {length} tokens to {prompts} prompts, of up to {longest} "
    "tokens: where ours part from llama.cpp's, both choices should be near a tie in the exact logits (gap below {tie})"
)


def measure(setting: Setting) -> Report:
    """The same every time: nothing here is a time, so there are no rounds."""
    llama = llama_cpp.server(setting.gguf, setting.threads, context=4096)
    tokens = llama_cpp.tokenize(llama, TEXT.read_text())[:3072]
    if len(tokens) < 3000:
        raise SystemExit(f"{TEXT.name} has {len(tokens)} tokens, and 3000 are wanted")
    theirs = llama_cpp.perplexity(llama, tokens)
    ours, exact = _ours(setting, tokens), _perplexity(reference(setting.gguf, tokens), tokens)
    values = {"ours": ours, "exact": exact, "llama.cpp": theirs}
    prompts = [llama_cpp.tokenize(llama, text) for text in PROMPTS.values()]
    answers = [llama_cpp.greedy(llama, prompt, ANSWER) for prompt in prompts]
    parted = [each for each in partings(setting.stage(), setting.gguf, prompts, answers) if each is not None]
    gaps = {"the same": len(prompts) - len(parted), "largest gap": max((each.gap for each in parted), default=0.0)}
    rows = (
        Row("perplexity above that of exact weights", 100 * (ours / exact - 1), "%", at_most=0.5, beside=values),
        Row("perplexity above llama.cpp's", 100 * (ours / theirs - 1), "%", at_most=0),
        Row(
            "greedy answers that part at no tie",
            sum(not each.is_near_tie for each in parted),
            "",
            at_most=0,
            beside=gaps,
        ),
    )
    sizes = {"length": ANSWER, "prompts": len(prompts), "longest": max(map(len, prompts)), "tie": NEAR_TIE}
    return Report("quality", HOW.format(count=len(tokens), **sizes), rows)


def _ours(setting: Setting, tokens: list[int]) -> float:
    stage = setting.stage(context=4096)
    cache = stage.open_cache(len(tokens))
    pieces = [stage.forward([Rows(cache, piece, "all")])[0] for piece in torch.tensor(tokens).split(256)]
    cache.close()
    return _perplexity(torch.cat(pieces), tokens)


def _perplexity(logits: torch.Tensor, tokens: list[int]) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:])).item())
