"""One mesh, many futures: it is linked once, and each seed goes on from there in a process of its own, a copy of the first.

Fifty nodes take longer to find each other than all that happens to them then.
"""

import os
import pickle
import signal
from collections.abc import Callable

import attrs

__all__ = ["Forks", "in_a_copy"]


@attrs.define(eq=False)
class Forks:
    """Lets a run go on once for each seed."""

    seeds: list  # that are not done yet
    report: Callable  # takes a result, to whoever reads those of this run
    mine: int | None = None  # in the process of a seed

    def begin_each(self):
        """Return the seed that this process goes on with, one after the other; None in the process that all are copies of."""
        signal.alarm(0)  # each has its own
        while self.seeds:
            child = os.fork()
            if not child:
                self.mine = self.seeds[0]
                return self.mine
            if status := os.waitpid(child, 0)[1]:
                raise ChildProcessError(f"the process of seed {self.seeds[0]} ended with status {status}")
            del self.seeds[0]
        return None

    def touched(self):
        """Return the seeds that come to nothing when this process fails."""
        return self.seeds if self.mine is None else [self.mine]


def in_a_copy(run):
    """Call `run` in a copy of this process, with a function that takes results, and yield them as they come."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            run(lambda result: _write_all(writer, pickle.dumps(result)))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as results:
        while results.peek(1):
            yield pickle.load(results)
    os.waitpid(child, 0)


def _write_all(pipe, data):
    while data:
        data = data[os.write(pipe, data) :]
