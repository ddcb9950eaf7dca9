"""The daemon's end of the socket to one worker, and what is in flight on it."""

import itertools
import socket
from collections import deque

import attrs
import trio

from meshnode.engine.executor import RingEvent, RingSign, RingToken
from meshnode.engine.ring_events import RingEvents
from meshnode.engine.token_stream import TokenStream
from meshnode.engine.worker_messages import (
    Accepted,
    Envelope,
    FrameCodec,
    Lapped,
    Pong,
    Progress,
    Question,
    RingEntered,
    Turning,
    to_worker_codec,
)
from meshnode.errors import MeshnodeError, WorkerLost
from meshnode.wire.failures import Failed, error_from

__all__ = ["Pending", "WorkerConnection"]


@attrs.define(eq=False)
class Pending:
    """One question that has one answer."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    envelope: Envelope | None = None
    error: MeshnodeError | None = None


@attrs.define(eq=False)
class WorkerConnection:
    """The socket to one worker and what is in flight on it."""

    socket: socket.socket  # not blocking
    stream: trio.SocketStream = attrs.field(init=False)
    codec: FrameCodec = attrs.field(factory=to_worker_codec)
    generations: dict[int, TokenStream] = attrs.field(factory=dict)
    rings: dict[int, RingEvents] = attrs.field(factory=dict)
    pending: dict[int, Pending] = attrs.field(factory=dict)
    heard: bool = False  # anything, since the last ping
    silent_for: float = 0.0
    _numbers: "itertools.count[int]" = attrs.field(factory=lambda: itertools.count(1))
    _outbox: deque[bytes] = attrs.field(factory=deque)
    _writing: bool = False
    _more: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.socket))

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for what the worker computes."""
        return bool(self.generations or self.rings or self.pending)

    def new_exchange(self) -> int:
        """Return a number no other exchange of this connection has."""
        return next(self._numbers)

    def post(self, exchange: int, message: Question, body: bytes = b"") -> None:
        """Send a message now if nothing waits and there is room, else queue it: a token spares a switch of tasks.

        The queue is bounded by what is in flight: callers post a handful of messages per exchange.
        """
        data = self.codec.encode(Envelope(exchange, message, body))
        if not (self._outbox or self._writing):
            data = data[self._send_now(data) :]
        if data:
            self._outbox.append(data)
            self._more.set()

    def _send_now(self, data: bytes) -> int:
        """Return how many bytes went into the socket's buffer."""
        try:
            return self.socket.send(data)
        except OSError:
            return 0  # full, or broken; the writer finds out which

    async def write_for_ever(self) -> None:
        """Send what is queued; the only writer, so that cancelling a caller never cuts a frame."""
        while True:
            while self._outbox:
                waiting = b"".join(self._outbox)
                self._outbox.clear()
                self._writing = True
                await self.stream.send_all(waiting)
                self._writing = False
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
        for events in self.rings.values():
            events.end(error)
        for pending in self.pending.values():
            pending.error = error
            pending.answered.set()

    def dispatch(self, envelope: Envelope) -> None:
        """Hand a message to whoever waits for it; nobody may have been, and then it is dropped."""
        message, exchange = envelope.message, envelope.exchange
        if isinstance(message, Progress):
            for number, tokens in message.cached:
                if number in self.generations:
                    self.generations[number].cached_tokens = tokens
            for sampled in message.sampled:
                if sampled.exchange in self.generations:
                    self.generations[sampled.exchange].push(sampled.event())
            for ended in message.ended:
                if ended in self.generations:
                    self.generations[ended].finish()
        elif isinstance(message, Pong):
            self.silent_for = message.silent_for
        elif isinstance(message, Accepted) and exchange in self.generations:
            self.generations[exchange].accept()
        elif isinstance(message, RingEntered | Lapped | Turning):
            if exchange in self.rings:
                self.rings[exchange].push(_event(message))
        elif isinstance(message, Failed):
            error = error_from(message)
            if exchange in self.rings:
                self.rings[exchange].end(error)
            elif exchange in self.generations:
                self.generations[exchange].finish(error)
            elif exchange in self.pending:
                self.pending[exchange].error = error
                self.pending[exchange].answered.set()
        elif exchange in self.pending:
            self.pending[exchange].envelope = envelope
            self.pending[exchange].answered.set()


def _event(message: RingEntered | Lapped | Turning) -> RingEvent:
    match message:
        case Lapped():
            return RingToken(message.step, message.position, message.token)
        case Turning():
            return RingSign.TURNING
        case RingEntered():
            return RingSign.ENTERED
