"""Many seeds of a mesh in trouble: every request ends, every answer is right, nothing is left over, and all find each other again.

`pytest tests/simulation --seeds N` plays more, `--seed N` one, and so does `nox -s simulate`. Of two hundred seeds one has fifty
nodes, the others have four to six. A seed that fails, or does not end, prints the command that replays it.
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


def test_a_seed_is_the_same_every_time():
    (code, one), (_, other) = (play("--first", "20", "--seeds", "3", "--trace", seeds=3) for _ in range(2))
    assert code == 0
    assert len(one) > 40
    assert any("leaves for good" in line for line in one)
    assert one == other
