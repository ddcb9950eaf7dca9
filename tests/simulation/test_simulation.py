"""Many seeds of a mesh in trouble: every request ends, every answer is right, nothing is left over, and all find each other again.

`nox -s simulate -- --seeds N` plays more; a seed that fails prints the command that replays it.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
SEEDS = 200


def play(*options):
    path = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "simulation", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def test_invariants_hold_over_many_seeds():
    result = play("--seeds", str(SEEDS))
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{SEEDS} seeds, 0 failed" in result.stdout


def test_a_seed_is_the_same_every_time():
    one, other = (play("--seed", "3", "--trace") for _ in range(2))
    assert one.returncode == 0, one.stdout + one.stderr
    first, second = (result.stdout.splitlines()[:-2] for result in (one, other))  # the time it took apart
    assert len(first) > 10
    assert first == second
