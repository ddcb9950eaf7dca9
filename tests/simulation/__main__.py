"""Plays seeds: PYTHONPATH=.:tests python -m simulation [--seeds N] [--first N] [--seed N] [--size N] [--trace]."""

import argparse
import gc
import itertools
import logging
import multiprocessing
import os
import random
import secrets
import signal
import sys
import tempfile
from pathlib import Path

import structlog

from simulation.forks import Forks, in_a_copy
from simulation.scenario import LARGE, play, play_forks, toy_model

__all__ = ["main"]

NODES, EVERY = 50, 4  # one seed of so many has fifty nodes; the others have four to six, and link them from nothing
OF_ONE_MESH = 100  # seeds: those among them that have fifty nodes go on from the same mesh
LIMIT = 900  # seconds of a seed, on the clock of a machine that is slow and busy


def begin(seed):
    """Have all that is left to chance go the same way every time."""
    source = random.Random(f"ids {seed}")
    secrets.token_hex = lambda count=16: source.randbytes(count).hex()
    secrets.randbits = source.getrandbits
    trio_random(seed)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)


def results(job):
    """Play some seeds; return what came of each."""
    size, mesh, seeds, model = job
    gc.collect()
    if size is not None and size >= LARGE:
        return list(in_a_copy(lambda report: many(mesh, size, model, Forks(seeds, report))))
    return [one(seed, size, model) for seed in seeds]


def one(seed, size, model):
    begin(seed)
    try:
        return play(seed, size, model)
    finally:
        signal.alarm(0)


def many(mesh, size, model, forks):
    begin(mesh)
    play_forks(mesh, size, model, forks, begin)


def jobs_of(seeds, size, model):
    """Return what one process plays at a time: the small seeds one by one, the large ones by their mesh, these first."""
    sizes = {seed: size or (None if seed % EVERY else NODES) for seed in seeds}
    large = [seed for seed in seeds if (sizes[seed] or 0) >= LARGE]
    jobs = [(sizes[seed], seed, [seed], model) for seed in seeds if (sizes[seed] or 0) < LARGE]
    for mesh, group in itertools.groupby(large, key=lambda seed: seed // OF_ONE_MESH):
        jobs.insert(0, (size or NODES, mesh, list(group), model))  # first, for they take longest
    return jobs


def collect_between_seeds():
    """Look for garbage between seeds alone: going through what fifty nodes keep, again and again, was two thirds of a seed's time.

    Nor does it depend on this machine then when what nobody holds any more is closed.
    """
    gc.disable()
    gc.freeze()


def too_long(*_):
    raise TimeoutError(f"has not ended after {LIMIT} s")


def trio_random(seed):
    """Have Trio run tasks in an order that the seed decides."""
    from trio._core import _run

    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)


def main() -> int:
    """Play and report."""
    parser = argparse.ArgumentParser(prog="simulation")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="play this one alone")
    parser.add_argument("--size", type=int, help="nodes")
    parser.add_argument("--trace", action="store_true", help="say what happens")
    asked = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a run
        os.execve(
            sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    seeds = [asked.seed] if asked.seed is not None else range(asked.first, asked.first + asked.seeds)
    failed, total = 0, [0, 0, 0, 0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs = jobs_of(seeds, asked.size, (folder, toy_model(folder)))
        with multiprocessing.get_context("fork").Pool(os.cpu_count(), collect_between_seeds) as pool:
            for result in itertools.chain.from_iterable(pool.imap(results, jobs, chunksize=1)):
                outcome = result.outcome
                if result.wrong:
                    failed += 1
                    for line in result.wrong:
                        print(f"seed {result.seed}: {line}", flush=True)
                if asked.trace:
                    print(f"seed {result.seed}:", *outcome.trace, sep="\n")
                if result.wrong:
                    size = f" --size {asked.size}" if asked.size else ""
                    print(
                        f"  replay: PYTHONPATH=.:tests python -m simulation --seed {result.seed}{size} --trace",
                        flush=True,
                    )
                    continue
                counts = (outcome.requests, outcome.answered, outcome.refused, outcome.faults)
                total = [a + b for a, b in zip(total, counts, strict=True)]
    requests, answered, refused, faults = total
    print(
        f"{len(seeds)} seeds, {failed} failed: {requests} requests, {answered} answered, {refused} refused, {faults} faults"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
