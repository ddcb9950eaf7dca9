"""Speed, memory and quality, measured here and now, each with its goal; docs/performance.md names what is not measured.

nox -s bench                        all of it, some twenty minutes
nox -s bench -- --only startup      one of speed, startup, overhead, streams, grammar, api, memory, quality, transfer, mesh; may be repeated
nox -s bench -- --only mesh-speed   a part of mesh: mesh-speed, mesh-losses, mesh-distance, mesh-idle, mesh-planner
nox -s bench -- --json              for programs; also --threads 2, --rounds 20

Without nox: python tests/bench/bench.py. A missed goal is printed, and is no error: machines differ.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import api
import grammar
import memory
import mesh_distance
import mesh_idle
import mesh_losses
import mesh_planner
import mesh_speed
import overhead
import quality
import speed
import startup
import streams
import transfer
from results import Report
from setting import Setting

MEASUREMENTS: dict[str, Callable[[Setting], Report]] = {
    "speed": speed.measure,
    "startup": startup.measure,
    "overhead": overhead.measure,
    "streams": streams.measure,
    "grammar": grammar.measure,
    "api": api.measure,
    "memory": memory.measure,
    "quality": quality.measure,
    "mesh-speed": mesh_speed.measure,
    "mesh-losses": mesh_losses.measure,
    "mesh-distance": mesh_distance.measure,
    "mesh-idle": mesh_idle.measure,
    "mesh-planner": mesh_planner.measure,
    "transfer": transfer.measure,
}
GROUPS = {"mesh": [name for name in MEASUREMENTS if name.startswith("mesh-")]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1, help="of meshnode and of llama.cpp")
    options.add_argument("--rounds", type=int, default=5, help="measured after one that warms up; medians are printed")
    options.add_argument(
        "--only", action="append", choices=[*MEASUREMENTS, *GROUPS], metavar="NAME", help="may be repeated"
    )
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    if chosen.threads < 1 or chosen.rounds < 1:
        options.error("--threads and --rounds are at least 1")
    torch.set_num_threads(chosen.threads)
    if not chosen.json:
        print(
            f"SmolLM2-135M-Instruct Q4_1, {chosen.threads} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}"
        )
        print(
            f"medians of {chosen.rounds} interleaved rounds (overhead: {3 * chosen.rounds}); a goal of the mesh that is a count or a percentile says so"
        )
    reports = []
    with TemporaryDirectory() as name:
        setting = Setting(Path(name), chosen.threads, chosen.rounds)
        wishes = chosen.only or MEASUREMENTS
        for wanted in dict.fromkeys(name for wish in wishes for name in GROUPS.get(wish, [wish])):
            report = MEASUREMENTS[wanted](setting)
            reports.append(report)
            if not chosen.json:
                print(f"\n{report.name}: {report.how}", *(row.line() for row in report.rows), sep="\n", flush=True)
    if chosen.json:
        found = {report.name: {"how": report.how, "rows": [row.as_json() for row in report.rows]} for report in reports}
        print(json.dumps({"threads": chosen.threads, "rounds": chosen.rounds, "measurements": found}))
    if any(row.is_met is False for report in reports if report.name == "quality" for row in report.rows):
        raise SystemExit(1)  # these are no times, so no machine is to blame


if __name__ == "__main__":
    main()
