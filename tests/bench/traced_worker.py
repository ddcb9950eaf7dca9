"""`python -m meshnode.engine.worker`, except that it writes down what it computes, frees, dials and hands on."""

import os
import sys
import time

from meshnode.engine.kv_cache import SessionCache
from meshnode.engine.ring_doors import RingDoors
from meshnode.engine.rings import Rings
from meshnode.engine.stage_model import StageModel
from meshnode.engine.worker import main

_forward, _close, _dial, _hand_on = StageModel.forward, SessionCache.close, RingDoors.dial, Rings.hand_on


def _trace() -> None:
    file = os.open(f"{os.environ['BENCH_TRACES']}/{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def forward(stage, rows, part=None):
        first, count = rows[0].cache.length, sum(len(each.inputs) for each in rows)
        began = time.monotonic()
        result = _forward(stage, rows, part)
        os.write(file, f"computed {began} {time.monotonic()} {first} {count}\n".encode())
        return result

    def close(cache):
        _close(cache)
        os.write(file, f"freed {time.monotonic()} {cache.pool.used_bytes}\n".encode())

    def dial(doors, door, number):
        os.write(file, f"opened {time.monotonic()} ring\n".encode())
        _dial(doors, door, number)

    def hand_on(rings, session, step, position, body):
        _hand_on(rings, session, step, position, body)
        os.write(file, f"handed {time.monotonic()} {position}\n".encode())

    StageModel.forward, SessionCache.close, RingDoors.dial, Rings.hand_on = forward, close, dial, hand_on


if __name__ == "__main__":
    _trace()
    main(int(sys.argv[1]))
