"""Greedy answers of the starter beside those of llama.cpp: where they part, and how near a tie it was.

Rounding differs, so two good implementations part wherever the two best tokens are about as likely as each other.
"""

import math
from pathlib import Path

import attrs
import torch
from support.reference_model import reference

from meshnode.engine.stage_model import Rows

__all__ = ["NEAR_TIE", "PROMPTS", "Parting", "partings"]

NEAR_TIE = 0.5  # between the two choices, in the exact logits
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
    "long": TEXT[:6200],  # 1,500 tokens
}


@attrs.frozen
class Parting:
    """The first token that differs."""

    at: int  # tokens before it
    gap: float  # between ours and theirs, in the exact logits

    @property
    def is_near_tie(self):
        return self.gap < NEAR_TIE


def partings(stage, gguf, prompts, answers):
    """Return for each prompt where our greedy answer parts from llama.cpp's; None where all of it is the same.

    All that still agree step as one batch, which changes no row.
    """
    caches = [stage.open_cache(len(prompt) + len(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    found: list[Parting | None] = [None] * len(prompts)
    rows, at = dict(enumerate(prompts)), 0
    while rows:
        logits = stage.forward([Rows(caches[number], torch.tensor(tokens)) for number, tokens in rows.items()])
        for number, row in zip(list(rows), logits, strict=True):
            ours, theirs = int(_without_ends(row[-1]).argmax()), answers[number][at]
            if ours != theirs:
                exact = _without_ends(reference(gguf, prompts[number] + answers[number][:at], last=True)[0])
                found[number] = Parting(at, abs(float(exact[ours] - exact[theirs])))
            if ours != theirs or at + 1 == len(answers[number]):
                del rows[number]
            else:
                rows[number] = [ours]
        at += 1
    for cache in caches:
        cache.close()
    return found


def _without_ends(logits):
    """Rule out what ends an answer, as llama.cpp's ignore_eos does."""
    allowed = logits.clone()
    allowed[0] = allowed[2] = -math.inf
    return allowed
