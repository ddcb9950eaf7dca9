"""Many seeds of a mesh in trouble: every request ends, every answer is right, nothing is left over, and all find each other again.

`pytest tests/simulation --seeds N` plays more, `--seed N` one, and so does `nox -s simulate`. Of four seeds one has fifty nodes,
which were linked before, and the others four to six, which find each other first. A seed that fails, or does not end, prints the
command that replays it.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PATIENCE, EACH = 1200.0, 6.0  # seconds, and for each seed some more: the clock of a machine that does other things too

pytestmark = pytest.mark.timeout(0)  # `play` and each seed have limits of their own


def play(*options, seeds=1):
    """Return the code and the lines of a simulation, which are printed as they come. Nobody is left behind."""
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-u", "-m", "simulation", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    lines = []
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        clock = threading.Timer(PATIENCE + EACH * seeds, end, [process])
        clock.start()
        try:
            for line in process.stdout:
                sys.stdout.write(line)
                lines.append(line.rstrip())
        finally:
            clock.cancel()
            end(process)
    return process.returncode, lines


def end(process):
    """End what still runs of it, its workers too."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_invariants_hold_over_many_seeds(request):
    seed, seeds = request.config.getoption("--seed"), request.config.getoption("--seeds")
    code, lines = play("--seeds", str(seeds), seeds=seeds) if seed is None else play("--seed", str(seed), "--trace")
    assert code == 0
    assert f"{seeds if seed is None else 1} seeds, 0 failed" in lines[-1]


@pytest.mark.parametrize(("size", "seed", "what"), [("4", 22, "leaves for good"), ("20", 1, "crashes")])
def test_a_seed_is_the_same_alone_as_among_others(size, seed, what):
    (code, among), (_, alone) = (
        play("--size", size, "--trace", *options, seeds=2)
        for options in (["--first", str(seed - 1), "--seeds", "2"], ["--seed", str(seed)])
    )
    assert code == 0
    assert len(alone) > 20
    assert any(what in line for line in alone)
    assert among[among.index(f"seed {seed}:") : -1] == alone[:-1]
