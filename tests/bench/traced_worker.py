"""`python -m meshnode.engine.worker`, except that it writes down every computation and every release of memory."""

import os
import sys
import time

from meshnode.engine.kv_cache import SessionCache
from meshnode.engine.stage_model import StageModel
from meshnode.engine.worker import main

_forward, _close = StageModel.forward, SessionCache.close


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

    StageModel.forward, SessionCache.close = forward, close


if __name__ == "__main__":
    _trace()
    main(int(sys.argv[1]))
