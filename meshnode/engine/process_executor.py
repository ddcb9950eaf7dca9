"""The stage executor that runs: a worker process, supervised as a child of the router.

Each run of this subsystem is one worker, an incarnation. Exchanges with it live in its connection's table and die with it:
when the worker ends, every iteration and every step in hand raises WorkerLost at once.
"""

import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from meshnode.engine.executor import ExecutorStats, Generation, StageReservation, StageResult, StageSpec, StageStep
from meshnode.engine.finite import is_finite
from meshnode.engine.ring_events import RingEvents
from meshnode.engine.token_stream import TokenStream
from meshnode.engine.worker_connection import Pending, WorkerConnection
from meshnode.engine.worker_messages import (
    BatchLimits,
    Cancel,
    DoorOpened,
    EnterRing,
    Envelope,
    Generate,
    Grant,
    LetTurn,
    Load,
    Loading,
    OpenDoor,
    Ping,
    Pong,
    Question,
    Ready,
    Release,
    Reserve,
    Reserved,
    Stats,
    StatsRequest,
    Step,
    StepDone,
)
from meshnode.engine.worker_process import WorkerProcess
from meshnode.errors import EngineError, WorkerLost
from meshnode.types.ids import SessionId
from meshnode.types.rings import RingPlace
from meshnode.wire.failures import Failed, error_from
from meshnode.wire.ring_messages import RingDoor

__all__ = ["ProcessExecutor"]

_log = structlog.get_logger(__name__)
_incarnations = itertools.count(1)
_WINDOW = 64
"""Tokens a worker may be ahead of a generation's reader; then it pauses that session and no other."""


class ProcessExecutor:
    """Runs one stage in a worker process."""

    def __init__(
        self,
        spec: StageSpec,
        *,
        limits: BatchLimits | None = None,
        ping_interval: float = 1.0,
        silence_limit: float = 8.0,  # seconds without a sign of life after which a worker counts as frozen
        waiting_limit: float = 4.0,  # the same while somebody waits for it: an answer in the middle of a step is a sign too
        step_limit: float = 300.0,  # seconds one step may take
        on_ready: Callable[[str, int, int], None] | None = None,  # hears (device, weight bytes, cache bytes)
    ) -> None:
        self.spec = spec
        self._limits = limits or BatchLimits()
        self._ping_interval = ping_interval
        self._silence_limit = silence_limit
        self._waiting_limit = waiting_limit
        self._step_limit = step_limit
        self._on_ready = on_ready
        self._connection: WorkerConnection | None = None
        self._became_ready = trio.Event()
        self._incarnation = 0

    @property
    def incarnation(self) -> int:
        """The number of the last worker that has become ready, of those of all executors of this process; 0 before."""
        return self._incarnation

    @property
    def is_ready(self) -> bool:
        """Whether a worker can be used now."""
        return self._connection is not None

    async def ready(self) -> None:
        """Wait until a worker can be used. Cancellation changes nothing."""
        while self._connection is None:
            await self._became_ready.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start a worker, load the stage, say started, and keep it until it ends (WorkerLost) or this is cancelled.

        Cancellation kills the worker; its memory is free when this returns. Raises what the load refuses with.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = WorkerProcess.start(theirs.fileno())
        except EngineError:
            ours.close()
            raise
        connection = WorkerConnection(ours)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.log_errors)
                nursery.start_soon(connection.write_for_ever)
                nursery.start_soon(self._watch, connection)
                try:
                    await self._serve(connection, task_status)
                except WorkerLost:
                    self._retire(connection, "the worker process ended")  # nobody waits for the reason
                    raise WorkerLost(f"the worker process ended: {await process.last_words()}") from None
        finally:
            self._retire(connection, "the worker process was stopped")
            await process.end()
            await trio.aclose_forcefully(connection.stream)

    def _retire(self, connection: WorkerConnection, reason: str) -> None:
        """Let nobody begin anything on this connection, and end what is in hand."""
        if self._connection is connection:
            self._connection = None
            self._became_ready = trio.Event()
        connection.fail_all(WorkerLost(reason))

    async def drain(self) -> None:
        """Nothing to do: the router drains the sessions."""

    @asynccontextmanager
    async def generate(self, request: Generation) -> AsyncIterator[TokenStream]:
        """Start a generation and yield its tokens; see StageExecutor.generate."""
        connection = self._live()
        exchange = connection.new_exchange()
        tokens = TokenStream(lambda count: connection.post(exchange, Grant(count)))
        connection.generations[exchange] = tokens
        try:
            connection.post(exchange, Generate(request, _WINDOW))
            await tokens.accepted()
            yield tokens
        finally:
            del connection.generations[exchange]
            if not tokens.ended:
                connection.post(exchange, Cancel())

    async def reserve(self, session: SessionId, reservation: StageReservation) -> int:
        """Reserve memory for a session; see StageExecutor.reserve."""
        envelope = await self._ask(Reserve(session, reservation))
        assert isinstance(envelope.message, Reserved)
        return envelope.message.length

    async def step(self, step: StageStep) -> StageResult:
        """Run one step; see StageExecutor.step. Raises EngineError when the weights or the machine make rows of no numbers."""
        message = Step(step.session, step.position, step.tokens, step.sample, step.return_from, step.number, step.until)
        envelope = await self._ask(message, step.activations)
        done = envelope.message
        assert isinstance(done, StepDone)
        if not is_finite(envelope.body):
            raise EngineError("this stage computed activations that are not finite; its model or its memory is broken")
        return StageResult(step.session, done.position, envelope.body, done.token, done.goes_round)

    async def open_door(self, session: SessionId, place: RingPlace) -> RingDoor:
        """Expect the worker of the stage before; see StageExecutor.open_door."""
        opened = (await self._ask(OpenDoor(session, place))).message
        assert isinstance(opened, DoorOpened)
        return RingDoor(place.hosts, opened.port, place.certificate, opened.token)

    @asynccontextmanager
    async def ring(self, session: SessionId, door: RingDoor, *, tells: bool) -> AsyncIterator[RingEvents]:
        """Connect to the worker of the next stage; see StageExecutor.ring."""
        connection = self._live()
        exchange, events = connection.new_exchange(), RingEvents()
        connection.rings[exchange] = events
        try:
            connection.post(exchange, EnterRing(session, door, tells))
            yield events
        finally:
            del connection.rings[exchange]

    def let_turn(self, session: SessionId, until: int) -> None:
        """Let the session's ring turn on; see StageExecutor.let_turn."""
        connection = self._live()
        connection.post(connection.new_exchange(), LetTurn(session, until))

    async def release(self, session: SessionId) -> None:
        """Free everything held for `session`; unknown sessions are fine."""
        await self._ask(Release(session))

    async def stats(self) -> ExecutorStats:
        """Return a fresh snapshot. Raises WorkerLost."""
        envelope = await self._ask(StatsRequest())
        assert isinstance(envelope.message, Stats)
        return envelope.message.stats

    async def _serve(self, connection: WorkerConnection, task_status: trio.TaskStatus[None]) -> None:
        """Load, then hand on what the worker says. Raises WorkerLost at the end of the stream."""
        await self._load(connection)
        self._connection = connection
        self._incarnation = next(_incarnations)
        self._became_ready.set()
        task_status.started()
        while True:
            for envelope in await connection.envelopes():
                connection.dispatch(envelope)

    async def _load(self, connection: WorkerConnection) -> None:
        connection.post(connection.new_exchange(), Load(self.spec, self._limits))
        while True:
            for envelope in await connection.envelopes():
                message = envelope.message
                if isinstance(message, Failed):
                    raise error_from(message)
                if isinstance(message, Loading):
                    _log.debug("loading", blocks=message.done, of=message.total)
                if isinstance(message, Pong):
                    connection.silent_for = message.silent_for
                if isinstance(message, Ready):
                    _log.info("stage loaded", device=message.device, weight_mib=message.weight_bytes >> 20)
                    if self._on_ready is not None:
                        self._on_ready(message.device, message.weight_bytes, message.cache_bytes)
                    return

    async def _watch(self, connection: WorkerConnection) -> None:
        """Ping, and end the incarnation when no sign of life comes: a frozen process keeps its socket open."""
        unanswered = 0.0  # seconds, counted in pings: after a pause of our own, the answers still lie unread
        while True:
            connection.heard = False
            connection.post(0, Ping())
            await trio.sleep(self._ping_interval)
            unanswered = 0.0 if connection.heard else unanswered + self._ping_interval
            # Importing torch takes a second or two, in which a new worker cannot answer.
            limit = self._waiting_limit if connection.is_awaited else self._silence_limit
            if self._connection is not connection:
                limit = max(60.0, limit)
            if unanswered > limit:
                raise WorkerLost(f"the worker process has not answered for {unanswered:.0f} s")
            if connection.silent_for > self._step_limit:
                raise WorkerLost(f"the worker process has been in one step for {connection.silent_for:.0f} s")

    def _live(self) -> WorkerConnection:
        if self._connection is None:
            raise WorkerLost("the worker process is not running")
        return self._connection

    async def _ask(self, question: Question, body: bytes = b"") -> Envelope:
        connection = self._live()
        exchange = connection.new_exchange()
        pending = connection.pending[exchange] = Pending()
        try:
            connection.post(exchange, question, body)
            await pending.answered.wait()
        finally:
            del connection.pending[exchange]
        if pending.error is not None:
            raise pending.error
        assert pending.envelope is not None
        return pending.envelope
