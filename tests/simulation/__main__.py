"""Plays seeds: PYTHONPATH=.:tests python -m simulation [--seeds N] [--first N] [--seed N] [--size N] [--trace]."""

import argparse
import gc
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

from simulation.scenario import play, toy_model

__all__ = ["main"]

LARGE_EVERY = 200  # one seed of so many plays with LARGE nodes, which takes as long as fifty others
LARGE = 50
LIMIT = 900  # seconds of a seed, on the clock of a machine that is slow and busy


def one(job):
    """Play one seed, the same every time; return it with its outcome, or with what went wrong."""
    seed, size, folder, manifest = job
    gc.collect()
    source = random.Random(f"ids {seed}")
    secrets.token_hex = lambda count=16: source.randbytes(count).hex()
    secrets.randbits = source.getrandbits
    trio_random(seed)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    try:
        return seed, play(seed, size, (folder, manifest)), None
    except BaseException as error:
        return seed, None, error
    finally:
        signal.alarm(0)


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


def flat(error):
    """Return the errors of a tree of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in flat(child)]
    return [error]


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
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = toy_model(folder)
        jobs = [(seed, asked.size or (LARGE if seed % LARGE_EVERY == 0 else None), folder, manifest) for seed in seeds]
        failed, total = 0, [0, 0, 0, 0]
        with multiprocessing.get_context("fork").Pool(os.cpu_count(), collect_between_seeds) as pool:
            for seed, outcome, error in pool.imap(one, jobs, chunksize=1):
                if error is not None:
                    failed += 1
                    for leaf in flat(error)[:3]:
                        print(f"seed {seed}: {type(leaf).__name__}: {leaf}", flush=True)
                    if asked.trace:
                        print("\n".join(error.__notes__))
                    size = f" --size {asked.size}" if asked.size else ""
                    print(f"  replay: PYTHONPATH=.:tests python -m simulation --seed {seed}{size} --trace", flush=True)
                    continue
                total = [
                    a + b
                    for a, b in zip(
                        total, (outcome.requests, outcome.answered, outcome.refused, outcome.faults), strict=True
                    )
                ]
                if asked.trace:
                    print(f"seed {seed}:", *outcome.trace, sep="\n")
    requests, answered, refused, faults = total
    print(
        f"{len(jobs)} seeds, {failed} failed: {requests} requests, {answered} answered, {refused} refused, {faults} faults"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
