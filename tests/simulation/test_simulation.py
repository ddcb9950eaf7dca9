"""Many seeds of a mesh in trouble: every request ends, every answer is right, nothing is left over, and all find each other again.

`pytest tests/simulation --seeds N` plays more, `--seed N` one, and so does `nox -s simulate`. A seed that fails prints the
command that replays it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def play(*options):
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "simulation", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def test_invariants_hold_over_many_seeds(request):
    seed, seeds = request.config.getoption("--seed"), request.config.getoption("--seeds")
    result = play("--seeds", str(seeds)) if seed is None else play("--seed", str(seed), "--trace")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{seeds if seed is None else 1} seeds, 0 failed" in result.stdout


@pytest.mark.parametrize("seed", [3, 6])  # the second with a departure
def test_a_seed_is_the_same_every_time(seed):
    one, other = (play("--seed", str(seed), "--trace") for _ in range(2))
    assert one.returncode == 0, one.stdout + one.stderr
    first, second = (result.stdout.splitlines()[:-2] for result in (one, other))  # the time it took apart
    assert len(first) > 10
    assert first == second
