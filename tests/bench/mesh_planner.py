"""The planner alone: a pure function."""

import statistics
import time
from random import Random

from results import Report, Row, spread
from setting import Setting

from meshnode.inference.planner import Candidate, RouteRequest, plan_route
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.peers import StageOffer

PEERS, BLOCKS = 1000, 80
HOW = f"one route over {PEERS} peers with random ranges of {BLOCKS} blocks, speeds and round trips, all of one drift class"


def measure(setting: Setting) -> Report:
    """Plan over another mesh every time."""
    seconds = [_seconds(Random(number)) for number in range(10 * setting.rounds + 1)][1:]
    beside = {"spread": 1000 * spread(seconds), "longest": 1000 * max(seconds)}
    row = Row(
        f"a route over {PEERS} peers and {BLOCKS} blocks",
        1000 * statistics.median(seconds),
        "ms",
        at_most=20.0,
        beside=beside,
    )
    return Report("mesh-planner", HOW, (row,))


def _seconds(random: Random) -> float:
    candidates = [_candidate(random, number) for number in range(PEERS)]
    request = RouteRequest(ModelId("model"), BLOCKS, tokens=1024, prompt_tokens=200)
    began = time.perf_counter()
    plan_route(request, candidates)
    return time.perf_counter() - began


def _candidate(random: Random, number: int) -> Candidate:
    begin = random.randrange(BLOCKS)
    blocks = BlockRange(begin, min(BLOCKS, begin + random.randrange(4, 24)))
    offer = StageOffer(
        model=ModelId("model"),
        name="model",
        block_count=BLOCKS,
        hidden_size=8192,
        context_length=8192,
        blocks=blocks,
        embedding=blocks.start == 0,
        head=blocks.end == BLOCKS,
        drift_class="class",
        block_seconds=random.uniform(1e-4, 5e-3),
        prefill_seconds=random.uniform(1e-5, 5e-4),
        free_tokens=100_000,
    )
    return Candidate(PeerId(f"peer{number}"), offer, random.uniform(1e-3, 0.2), random.randrange(3))
