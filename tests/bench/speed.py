"""Prefill and decode against llama.cpp: same file, same threads, interleaved."""

import statistics
import time

import llama_cpp
import torch
from results import Report, Row
from setting import Setting

from meshnode.engine.stage_model import Rows, StageModel

DECODE = 96  # tokens
GOALS = {"prefill": 1.5, "decode": 0.9}


def measure(setting: Setting) -> Report:
    """Drive the engine directly, without the worker process and HTTP, as llama.cpp's own timings do."""
    stage = setting.stage()
    llama = llama_cpp.server(setting.gguf, setting.threads, context=2048)
    rows = []
    for length in (512, 8):
        prompt = [1000 + i for i in range(length)]
        rounds = [
            (_speeds(stage, prompt), llama_cpp.tokens_per_second(llama, prompt, DECODE))
            for _ in range(setting.rounds + 1)
        ][1:]  # the first one warms both up
        for index, what in enumerate(("prefill", "decode")):
            if what == "prefill" and length == 8:
                continue  # not a prompt anybody waits for
            title = f"prefill {length} tokens" if what == "prefill" else f"decode after {length} tokens"
            ours, theirs = ([each[side][index] for each in rounds] for side in (0, 1))
            beside = {"meshnode tokens/s": statistics.median(ours), "llama.cpp": statistics.median(theirs)}
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            rows.append(Row(title, ratio, "x", at_least=GOALS[what], beside=beside))
    return Report("speed", f"tokens/s of ours over llama.cpp's, {DECODE} tokens decoded, engine alone", tuple(rows))


def _speeds(stage: StageModel, prompt: list[int]) -> tuple[float, float]:
    cache = stage.open_cache(len(prompt) + DECODE)
    began = time.perf_counter()
    logits = stage.forward([Rows(cache, torch.tensor(prompt), "last")])[0]
    middle = time.perf_counter()
    for _ in range(DECODE):
        logits = stage.forward([Rows(cache, logits[-1].argmax()[None], "last")])[0]
    end = time.perf_counter()
    cache.close()
    return len(prompt) / (middle - began), DECODE / (end - middle)
