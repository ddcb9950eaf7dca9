"""An executor without weights: the next token is a function of position and seed, as with the real one."""

import itertools
from contextlib import asynccontextmanager

import trio

from meshnode.engine.executor import ExecutorStats
from meshnode.errors import WorkerLost
from meshnode.types.generation import TokenEvent

__all__ = ["FakeExecutor"]

_incarnations = itertools.count(1)


class FakeExecutor:
    """Says `text` over and over; loses its worker after the token counts in `losses`, and comes back after a second."""

    def __init__(self, tokens, *, losses=(), pace=0.01, returns=True):
        self.tokens, self.losses, self.pace, self.returns = list(tokens), list(losses), pace, returns
        self.incarnation, self.running, self.most, self.started = 0, 0, 0, []
        self._ready = trio.Event()

    async def run(self, *, task_status):
        while True:
            self.incarnation = next(_incarnations)
            self._lost = trio.Event()
            self._ready.set()
            task_status.started()
            await trio.sleep_forever()

    async def drain(self):
        pass

    async def ready(self):
        await self._ready.wait()

    @property
    def is_ready(self):
        return self._ready.is_set()

    async def stats(self):
        await trio.lowlevel.checkpoint()
        return ExecutorStats(0, 0, 1, self.running, 0, 0, 0, self.pace, self.pace, 1 << 16, "fake")

    def come_back(self):
        self.incarnation = next(_incarnations)

    @asynccontextmanager
    async def generate(self, request):
        self.started.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield self._events(request)
        finally:
            self.running -= 1

    def _events(self, request):
        return _Events(self, request)


class _Events:
    cached_tokens = 0

    def __init__(self, executor, request):
        self.executor, self.request = executor, request
        self.at, self.sent = len(request.tokens) - request.prompt_length, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        executor = self.executor
        if self.sent == self.request.max_tokens or (self.sent and self.last in self.request.end_tokens):
            raise StopAsyncIteration
        await trio.sleep(executor.pace)
        if executor.losses and self.at == executor.losses[0]:
            executor.losses.pop(0)
            if executor.returns:
                executor.come_back()
            raise WorkerLost("the worker process ended")
        self.last = executor.tokens[self.at % len(executor.tokens)]
        self.at, self.sent = self.at + 1, self.sent + 1
        top = self.request.sampling.top_logprobs
        return TokenEvent(self.last, None if top is None else -0.5, ((self.last, -0.5),) if top else ())
