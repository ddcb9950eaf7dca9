"""The stage executor that runs: a worker process, supervised as a child of the router.

Each run of this subsystem is one worker, an incarnation. Exchanges with it live in its connection's table and die with it:
when the worker ends, every iteration and every step in hand raises WorkerLost at once.
"""

import itertools
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import attrs
import structlog
import trio

from meshnode.engine.executor import ExecutorStats, Generation, StageReservation, StageResult, StageSpec, StageStep
from meshnode.engine.worker_messages import (
    Accepted,
    Answer,
    BatchLimits,
    Cancel,
    Envelope,
    FrameCodec,
    Generate,
    Grant,
    Load,
    Loading,
    Ping,
    Pong,
    Progress,
    Question,
    Ready,
    Release,
    Reserve,
    Reserved,
    Stats,
    StatsRequest,
    Step,
    StepDone,
    to_worker_codec,
)
from meshnode.engine.worker_process import WorkerProcess
from meshnode.errors import EngineError, MeshnodeError, WorkerLost
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import SessionId
from meshnode.wire.failures import Failed, error_from

__all__ = ["ProcessExecutor", "TokenStream"]

_log = structlog.get_logger(__name__)
_WINDOW = 64
"""Tokens a worker may be ahead of a generation's reader; then it pauses that session and no other."""
_GRANT = 16


@attrs.define(eq=False)
class TokenStream:
    """The tokens of one generation; iterating grants the worker more."""

    _grant: Callable[[int], None]
    _events: deque[TokenEvent] = attrs.field(factory=deque, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _accepted: bool = attrs.field(default=False, init=False)
    ended: bool = attrs.field(default=False, init=False)
    _error: MeshnodeError | None = attrs.field(default=None, init=False)
    _taken: int = attrs.field(default=0, init=False)

    def __aiter__(self) -> Self:
        """Iterate the tokens."""
        return self

    async def __anext__(self) -> TokenEvent:
        """Return the next token; raises WorkerLost, or what the worker refused with. Cancellation loses nothing."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
            await self._wait()
        self._taken += 1
        if self._taken % _GRANT == 0 and not self.ended:
            self._grant(_GRANT)
        return self._events.popleft()

    async def accepted(self) -> None:
        """Wait until the worker has reserved the session's memory. Raises what it refused with."""
        while not self._accepted and self._error is None:
            await self._wait()
        if not self._accepted and self._error is not None:
            raise self._error

    def accept(self) -> None:
        """Note that the memory is reserved."""
        self._accepted = True
        self._changed.set()

    def push(self, event: TokenEvent) -> None:
        """Take a token from the worker."""
        self._events.append(event)
        self._changed.set()

    def finish(self, error: MeshnodeError | None = None) -> None:
        """Note that no more come. An answer that is complete stays so, whatever happens to the worker afterwards."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._changed.set()

    async def _wait(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()


@attrs.define(eq=False)
class _Pending:
    """One question that has one answer."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    envelope: Envelope | None = None
    error: MeshnodeError | None = None


@attrs.define(eq=False)
class _Connection:
    """The socket to one worker and what is in flight on it."""

    stream: trio.SocketStream
    codec: FrameCodec = attrs.field(factory=to_worker_codec)
    generations: dict[int, TokenStream] = attrs.field(factory=dict)
    pending: dict[int, _Pending] = attrs.field(factory=dict)
    heard: bool = False  # anything, since the last ping
    silent_for: float = 0.0
    _numbers: "itertools.count[int]" = attrs.field(factory=lambda: itertools.count(1))
    _outbox: deque[bytes] = attrs.field(factory=deque)
    _more: trio.Event = attrs.field(factory=trio.Event)

    def new_exchange(self) -> int:
        """Return a number no other exchange of this connection has."""
        return next(self._numbers)

    def post(self, exchange: int, message: Question, body: bytes = b"") -> None:
        """Queue a message. The queue is bounded by what is in flight: callers post a handful of messages per exchange."""
        self._outbox.append(self.codec.encode(Envelope(exchange, message, body)))
        self._more.set()

    async def write_for_ever(self) -> None:
        """Send what is queued; the only writer, so that cancelling a caller never cuts a frame."""
        while True:
            while self._outbox:
                waiting = b"".join(self._outbox)
                self._outbox.clear()
                await self.stream.send_all(waiting)
            self._more = trio.Event()
            await self._more.wait()

    async def envelopes(self) -> list[Envelope]:
        """Return the next messages. Raises WorkerLost at the end of the stream."""
        while True:
            try:
                data = await self.stream.receive_some(1 << 18)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise WorkerLost("the worker process ended")
            self.heard = True
            found = self.codec.feed(bytes(data))
            if found:
                return found

    def fail_all(self, error: MeshnodeError) -> None:
        """End everything in flight."""
        for tokens in self.generations.values():
            tokens.finish(error)
        for pending in self.pending.values():
            pending.error = error
            pending.answered.set()


class ProcessExecutor:
    """Runs one stage in a worker process."""

    def __init__(
        self,
        spec: StageSpec,
        *,
        limits: BatchLimits | None = None,
        ping_interval: float = 2.0,
        silence_limit: float = 8.0,  # seconds without a sign of life after which a worker counts as frozen
        step_limit: float = 300.0,  # seconds one step may take
        on_ready: Callable[[int, int], None] | None = None,  # hears (weight bytes, cache bytes)
    ) -> None:
        self.spec = spec
        self._limits = limits or BatchLimits()
        self._ping_interval = ping_interval
        self._silence_limit = silence_limit
        self._step_limit = step_limit
        self._on_ready = on_ready
        self._connection: _Connection | None = None
        self._became_ready = trio.Event()
        self._incarnation = 0

    @property
    def incarnation(self) -> int:
        """How many workers have become ready so far."""
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
        connection = _Connection(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
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

    def _retire(self, connection: _Connection, reason: str) -> None:
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
        """Run one step; see StageExecutor.step."""
        message = Step(step.session, step.position, step.tokens, step.sample, step.return_from)
        envelope = await self._ask(message, step.activations)
        assert isinstance(envelope.message, StepDone)
        return StageResult(step.session, envelope.message.position, envelope.body, envelope.message.token)

    async def release(self, session: SessionId) -> None:
        """Free everything held for `session`; unknown sessions are fine."""
        await self._ask(Release(session))

    async def stats(self) -> ExecutorStats:
        """Return a fresh snapshot. Raises WorkerLost."""
        envelope = await self._ask(StatsRequest())
        assert isinstance(envelope.message, Stats)
        return envelope.message.stats

    async def _serve(self, connection: _Connection, task_status: trio.TaskStatus[None]) -> None:
        """Load, then hand on what the worker says. Raises WorkerLost at the end of the stream."""
        await self._load(connection)
        self._connection = connection
        self._incarnation += 1
        self._became_ready.set()
        task_status.started()
        while True:
            for envelope in await connection.envelopes():
                _dispatch(connection, envelope.exchange, envelope)

    async def _load(self, connection: _Connection) -> None:
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
                        self._on_ready(message.weight_bytes, message.cache_bytes)
                    return

    async def _watch(self, connection: _Connection) -> None:
        """Ping, and end the incarnation when no sign of life comes: a frozen process keeps its socket open."""
        unanswered = 0.0  # seconds, counted in pings: after a pause of our own, the answers still lie unread
        while True:
            connection.heard = False
            connection.post(0, Ping())
            await trio.sleep(self._ping_interval)
            unanswered = 0.0 if connection.heard else unanswered + self._ping_interval
            # Importing torch takes a second or two, in which a new worker cannot answer.
            limit = self._silence_limit if self._connection is connection else max(60.0, self._silence_limit)
            if unanswered > limit:
                raise WorkerLost(f"the worker process has not answered for {unanswered:.0f} s")
            if connection.silent_for > self._step_limit:
                raise WorkerLost(f"the worker process has been in one step for {connection.silent_for:.0f} s")

    def _live(self) -> _Connection:
        if self._connection is None:
            raise WorkerLost("the worker process is not running")
        return self._connection

    async def _ask(self, question: Question, body: bytes = b"") -> Envelope:
        connection = self._live()
        exchange = connection.new_exchange()
        pending = connection.pending[exchange] = _Pending()
        try:
            connection.post(exchange, question, body)
            await pending.answered.wait()
        finally:
            del connection.pending[exchange]
        if pending.error is not None:
            raise pending.error
        assert pending.envelope is not None
        return pending.envelope


def _dispatch(connection: _Connection, exchange: int, envelope: Envelope) -> None:
    """Hand a message to whoever waits for it; nobody may have been, and then it is dropped."""
    message: Question | Answer = envelope.message
    if isinstance(message, Progress):
        for sampled in message.sampled:
            if sampled.exchange in connection.generations:
                connection.generations[sampled.exchange].push(sampled.event())
        for ended in message.ended:
            if ended in connection.generations:
                connection.generations[ended].finish()
    elif isinstance(message, Pong):
        connection.silent_for = message.silent_for
    elif isinstance(message, Accepted) and exchange in connection.generations:
        connection.generations[exchange].accept()
    elif isinstance(message, Failed):
        error = error_from(message)
        if exchange in connection.generations:
            connection.generations[exchange].finish(error)
        elif exchange in connection.pending:
            connection.pending[exchange].error = error
            connection.pending[exchange].answered.set()
    elif exchange in connection.pending:
        connection.pending[exchange].envelope = envelope
        connection.pending[exchange].answered.set()
