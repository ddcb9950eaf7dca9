"""Writes perplexity.json: the perplexity of the starter's exact weights over the text of the quality tests. Takes half a minute.

PYTHONPATH=tests python tests/golden/make_perplexity_golden.py STARTER.gguf
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import torch
import xllamacpp
from engine.test_quality import tokenize
from support.greedy import TEXT
from support.reference_model import reference

TOKENS, BEGINNING = 1024, 256


def main(gguf: Path) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.verbosity = str(gguf), 4096, -1
    tokens = tokenize(xllamacpp.Server(parameters), TEXT)[:TOKENS]

    def perplexity(count: int) -> float:
        loss = torch.nn.functional.cross_entropy(reference(gguf, tokens[:count])[:-1], torch.tensor(tokens[1:count]))
        return math.exp(loss.item())

    golden = {
        "file": hashlib.blake2b(gguf.read_bytes()).hexdigest(),
        "tokens": TOKENS,
        "perplexity": perplexity(TOKENS),
        "beginning": {"tokens": BEGINNING, "perplexity": perplexity(BEGINNING)},
    }
    Path(__file__).with_name("perplexity.json").write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
