"""A stage executor whose model is a chain of hashes: cheap, exact, and wrong at once if a row is missing, doubled or changed.

A block's output row is a hash of its input row and of the whole of its cache, as attention's is. So stages compose, a replay
gives the same rows, and a token depends on every row of every block before it.
"""

import itertools
from contextlib import asynccontextmanager
from hashlib import blake2b

import attrs
import trio

from meshnode.engine.executor import ExecutorStats, Generation, StageReservation, StageResult, StageStep
from meshnode.engine.prefixes import PAGE
from meshnode.errors import BadRows, OutOfMemory, RequestError, SessionLost, WorkerLost
from meshnode.types.blocks import BlockRange
from meshnode.types.generation import TokenEvent
from meshnode.wire.ring_messages import Lap

__all__ = ["WIDTH", "ToyExecutor", "toy_answer"]

WIDTH = 8  # bytes of a row
_incarnations = itertools.count(1)


def _hash(*parts):
    return blake2b(b"".join(parts), digest_size=WIDTH).digest()


@attrs.define
class _Cache:
    reservation: StageReservation
    running: dict  # block -> hashes of its cache after each position
    length: int = 0
    history: list = attrs.field(factory=list)
    steps: int = 0  # under way
    number: int = 0  # of the last step
    until: int = 0  # laps go on up to the row before this position
    held: tuple | None = None  # a lap that came to there, and its body


class ToyExecutor:
    """Runs `blocks` of a model of `block_count`; a row through a block takes `pace` seconds of virtual time."""

    def __init__(
        self,
        block_count,
        blocks=None,
        *,
        embedding=True,
        head=True,
        vocabulary=64,
        pace=1e-4,
        room=1 << 20,
        width=WIDTH,
        rings=None,
    ):
        self.block_count, self.blocks = block_count, blocks or BlockRange(0, block_count)
        self.embedding, self.head, self.vocabulary, self.pace, self.room = embedding, head, vocabulary, pace, room
        self.width = width  # bytes of a row on its way; all but the first are padding
        self.rings = rings  # ToyRings, if executors hand rows on among themselves
        self.sessions, self.incarnation, self.is_ready = {}, 0, False
        self.kept = {}  # full pages, by name
        self.rows = 0  # computed so far, times blocks
        self.restart = 1.0  # seconds until it runs again after a crash
        self._ready, self._lost = trio.Event(), trio.Event()
        self._busy = trio.Lock()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        self.incarnation = next(_incarnations)
        self.is_ready, self.sessions, self.kept, self._lost = True, {}, {}, trio.Event()
        self._ready.set()
        task_status.started()
        try:
            await self._lost.wait()
            raise WorkerLost("the worker process ended")
        finally:
            self.crash()
            self._ready = trio.Event()

    def crash(self):
        self._lost.set()
        self.is_ready, self.sessions = False, {}
        if self.rings is not None:
            self.rings.end(self)

    async def drain(self):
        pass

    async def ready(self):
        while not self.is_ready:
            await self._ready.wait()

    async def reserve(self, session, reservation):
        await trio.lowlevel.checkpoint()
        self._check()
        within = reservation.blocks is None or (
            self.blocks.start <= reservation.blocks.start and reservation.blocks.end <= self.blocks.end
        )
        if not within or reservation.embedding > self.embedding or reservation.head > self.head:
            raise RequestError("these blocks are not loaded here")
        self._leave(session)
        there = self.sessions.get(session)
        if there is not None and there.reservation.blocks == reservation.blocks:
            there.reservation, there.history = reservation, list(reservation.history)
            there.number, there.until, there.held = 0, 0, None
            return there.length
        if sum(each.reservation.tokens for each in self.sessions.values()) + reservation.tokens > self.room:
            raise OutOfMemory("the KV cache is full")
        blocks = reservation.blocks or ()
        cache = _Cache(reservation, {block: [b""] for block in blocks}, 0, list(reservation.history))
        for name in reservation.pages:
            if (page := self.kept.get((reservation.asker, reservation.blocks, name))) is None:
                break
            cache.running = {block: list(running) for block, running in page.items()}
            cache.length += PAGE
        self.sessions[session] = cache
        return cache.length

    async def step(self, step):
        self._check()
        cache = self.sessions.get(step.session)
        if cache is None:
            raise SessionLost("no such session")
        cache.until, cache.held = step.until, None
        return await self._step(cache, step)

    async def _step(self, cache, step):
        cache.number = step.number
        cache.steps += 1
        try:
            result = await self._compute(cache, step)
        finally:
            cache.steps -= 1
        if not step.until:
            return result
        if result.token is None:
            self.rings.hand_on(self, step.session, Lap(0, step.number, step.position), result.activations)
        else:
            self.rings.sampled(self, step.session, step, result.token)
        return attrs.evolve(result, activations=b"", goes_round=True)

    async def _compute(self, cache, step):
        wants = cache.reservation
        rows = (
            [_hash(b"token", token.to_bytes(4, "little")) for token in step.tokens]
            if wants.embedding
            else [step.activations[at : at + WIDTH] for at in range(0, len(step.activations), self.width)]
        )
        if b"\xff" * WIDTH in rows:  # NaN
            raise BadRows("the activations are not finite")
        if not rows or step.position > cache.length:
            raise RequestError(f"a gap: {step.position} after {cache.length}, {len(rows)} rows")
        async with self._busy:
            await trio.sleep(self.pace * len(rows) * len(cache.running))
        self._check()
        if self.sessions.get(step.session) is not cache or cache.reservation is not wants:
            raise SessionLost("released or reserved anew meanwhile")
        for block, running in cache.running.items():
            del running[step.position + 1 :]
            out = []
            for row in rows:
                running.append(_hash(running[-1], row))
                out.append(_hash(block.to_bytes(4, "little"), row, running[-1]))
            rows = out
            self.rows += len(rows)
        cache.length = step.position + len(rows)
        for index, name in enumerate(wants.pages[: cache.length // PAGE]):
            end = (index + 1) * PAGE
            page = {block: running[: end + 1] for block, running in cache.running.items()}
            self.kept.setdefault((wants.asker, wants.blocks, name), page)
        token = None
        if wants.head and step.sample:
            token = self._sample(cache, rows[-1])
        first = max(step.position, step.return_from)
        activations = (
            b"" if wants.head else b"".join(row.ljust(self.width, b"\0") for row in rows[first - step.position :])
        )
        return StageResult(step.session, first, activations, token)

    def _sample(self, cache, row):
        wants, at = cache.reservation, cache.length - cache.reservation.prompt_length
        del cache.history[at:]
        assert len(cache.history) == at, "the head does not know the answer so far"
        salt = repr((wants.sampling.seed, wants.sampling.temperature, cache.history[-3:])).encode()
        chosen = int.from_bytes(_hash(b"head", row, salt), "little") % self.vocabulary
        cache.history.append(chosen)
        return (
            TokenEvent(chosen) if wants.sampling.top_logprobs is None else TokenEvent(chosen, -0.5, ((chosen, -0.5),))
        )

    async def open_door(self, session, place):
        await trio.lowlevel.checkpoint()
        self._check()
        if session not in self.sessions:
            raise SessionLost("no such session")
        return None if self.rings is None else self.rings.expect(self, session, place)

    @asynccontextmanager
    async def ring(self, session, door, *, tells):
        self._check()
        yield self.rings.enter(self, session, door, tells)

    def let_turn(self, session, until):
        self._check()
        if (cache := self.sessions.get(session)) is not None:
            cache.until, held, cache.held = max(cache.until, until), cache.held, None
            if held is not None:
                self.rings.go_on(self, session, *held)

    async def lap(self, session, lap, body):
        """Take a row that came round, or the token after one."""
        cache = self.sessions[session]
        wants = cache.reservation
        if lap.step != cache.number + 1:
            raise BadRows(f"step {lap.step} came round where {cache.number + 1} is the next")
        if lap.event is not None:
            self.rings.tell(self, session, lap.step - 1, lap.position - 1, lap.event)
        if wants.embedding and lap.position >= cache.until and cache.held is None:
            cache.held = lap, body
            return
        await self.go_round(session, lap, body)

    async def go_round(self, session, lap, body):
        cache = self.sessions[session]
        wants = cache.reservation
        if cache.steps or cache.held is not None or lap.position != cache.length:
            raise BadRows(f"position {lap.position} came round where {cache.length} is the next")
        if len(body) != (0 if wants.embedding else self.width) or (lap.event is None) is wants.embedding:
            raise BadRows(f"{len(body)} bytes came round")
        tokens = () if lap.event is None else (lap.event.token,)
        if any(token >= self.vocabulary for token in tokens):
            raise RequestError("no token of this model")
        await self._step(cache, StageStep(session, lap.position, tokens, body, wants.head, number=lap.step, until=1))

    def _leave(self, session):
        if self.rings is not None:
            self.rings.leave(self, session)

    async def release(self, session):
        await trio.lowlevel.checkpoint()
        self._leave(session)
        self.sessions.pop(session, None)

    async def stats(self):
        await trio.lowlevel.checkpoint()
        self._check()
        used = sum(each.reservation.tokens for each in self.sessions.values())
        return ExecutorStats(
            0, used, self.room, len(self.sessions), 0, 0, 0, self.pace, self.pace, self.room - used, "toy"
        )

    @asynccontextmanager
    async def generate(self, request):
        wants = StageReservation(
            self.blocks,
            True,
            True,
            len(request.tokens) + request.max_tokens,
            request.prompt_length,
            request.tokens[request.prompt_length :],
            request.sampling,
        )
        await self.reserve(request.session, wants)
        try:
            yield self._events(request)
        finally:
            self.sessions.pop(request.session, None)

    def _events(self, request):
        return _Events(self, request)

    def _check(self):
        if not self.is_ready:
            raise WorkerLost("the worker process is not running")


class _Events:
    cached_tokens = 0

    def __init__(self, executor, request):
        self.executor, self.request = executor, request
        self.tokens, self.sent = list(request.tokens), 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        request, last = self.request, self.tokens[-1]
        if self.sent == request.max_tokens or (self.sent and last in request.end_tokens):
            raise StopAsyncIteration
        begin = len(self.tokens) - 1 if self.sent else 0
        step = StageStep(request.session, begin, tuple(self.tokens[begin:]), sample=True)
        event = (await self.executor.step(step)).token
        self.tokens.append(event.token)
        self.sent += 1
        return event


async def toy_answer(block_count, prompt, sampling, count):
    """Return the tokens one executor with everything gives."""
    executor = ToyExecutor(block_count, pace=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor.run)
        await executor.ready()
        async with executor.generate(Generation("reference", tuple(prompt), len(prompt), count, sampling)) as events:
            tokens = [event.token async for event in events]
        nursery.cancel_scope.cancel()
    return tokens
