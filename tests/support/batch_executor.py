"""A stage executor that computes with a real model, as a worker process does, but at once and in this process."""

import itertools

import trio

from meshnode.engine.batching import Batch
from meshnode.engine.executor import ExecutorStats, StageResult
from meshnode.engine.stage_model import StageModel
from meshnode.engine.worker_messages import BatchLimits, Envelope, Release, Reserve, Step
from meshnode.wire.failures import Failed, error_from

__all__ = ["BatchExecutor"]


class BatchExecutor:
    """Runs a stage for sessions that others drive; time stands still while it computes, so it says of itself what its pace is."""

    incarnation, is_ready = 1, True

    def __init__(self, spec, pace=1e-4):
        self.stage, self.pace = StageModel.load(spec), pace
        self.batch = Batch(self.stage, BatchLimits(96, 32), self._hear)
        self._answers, self._numbers = {}, itertools.count(1)

    def _hear(self, envelope):
        self._answers[envelope.exchange] = envelope

    async def _ask(self, message, body=b""):
        await trio.lowlevel.checkpoint()
        exchange = next(self._numbers)
        self.batch.accept(Envelope(exchange, message, body))
        while not self.batch.is_idle:
            self.batch.step()
        answer = self._answers.pop(exchange)
        if isinstance(answer.message, Failed):
            raise error_from(answer.message)
        return answer

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        await trio.sleep_forever()

    async def ready(self):
        await trio.lowlevel.checkpoint()

    async def drain(self):
        await trio.lowlevel.checkpoint()

    async def reserve(self, session, reservation):
        return (await self._ask(Reserve(session, reservation))).message.length

    async def step(self, step):
        message = Step(step.session, step.position, step.tokens, step.sample, step.return_from)
        done = await self._ask(message, step.activations)
        return StageResult(step.session, done.message.position, done.body, done.message.token)

    async def open_door(self, session, place):
        await trio.lowlevel.checkpoint()

    async def release(self, session):
        await self._ask(Release(session))

    async def stats(self):
        await trio.lowlevel.checkpoint()
        pool, free = self.stage.pool, self.stage.free_tokens
        memory = (self.stage.weight_bytes, pool.used_bytes, pool.budget_bytes, self.batch.sessions)
        return ExecutorStats(*memory, 0, 0, 0, self.pace, self.pace, free, "cpu", "tiny")
