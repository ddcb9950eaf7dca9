"""A link: one stream to one peer, with one task that writes, one that reads, and the questions in flight.

Callers hand whole frames to the writer, so cancelling one never cuts a frame, and never cancels input or output. Exchanges
are numbered by who asks: odd by the side that opened the link, even by the other, so that an answer can be told from a
question.
"""

import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

import attrs
import msgspec
import trio

from meshnode.errors import MeshnodeError, PeerMisbehaved, PeerRefused, PeerUnreachable, WireError
from meshnode.network.heartbeats import Compared, Heartbeat
from meshnode.network.outbox import Outbox
from meshnode.network.ports import ByteStream, Inbound
from meshnode.network.writer import FrameWriter
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Hello, Ping, Pong
from meshnode.wire.envelopes import Envelope, EnvelopeCodec, MessageSet
from meshnode.wire.failures import Failed, error_from, failure
from meshnode.wire.protocols import feature_of
from meshnode.wire.versions import Terms

__all__ = ["Link", "LinkSettings"]

M = TypeVar("M", bound=msgspec.Struct)
_READ = 256 << 10  # bytes
_MEASURE_EVERY = 12  # pings of the side that opened the link, of which the other answers one with a ping of its own


@attrs.frozen
class LinkSettings:
    """Bounds of one link."""

    outbox: int = 4 << 20  # bytes that may wait to be sent
    heartbeat: float = 5.0  # seconds between pings
    misses: int = 3  # pings without a sign of life that end the link
    stall: float = 30.0  # seconds in which the peer must take 256 KiB
    goodbye: float = 1.0  # seconds for telling the peer why the link ends


@attrs.define(eq=False)
class _Asked(Generic[M]):
    """A question in flight."""

    settled: trio.Event = attrs.field(factory=trio.Event)
    answer: Inbound[M] | None = None


@attrs.define(eq=False)
class Link(Generic[M]):
    """A message link over any byte stream. `greet` first, then `run`; it ends with its stream, or by `close`."""

    peer: PeerId
    stream: ByteStream = attrs.field(repr=False)
    messages: MessageSet[M] = attrs.field(repr=False)
    opened: bool  # by this side
    settings: LinkSettings = attrs.field(factory=LinkSettings, repr=False)
    is_relayed: bool = False  # a third node carries it
    terms: Terms | None = attrs.field(default=None, init=False)  # None until greeted
    closed: trio.Event = attrs.field(factory=trio.Event, init=False)
    ended_by: MeshnodeError | None = attrs.field(default=None, init=False)  # why it closed
    used_at: float = attrs.field(
        factory=trio.current_time, init=False
    )  # when a message other than a ping went either way
    _codec: EnvelopeCodec[M] = attrs.field(repr=False, init=False)
    _early: list[Envelope[M]] = attrs.field(repr=False, factory=list, init=False)  # came together with the peer's Hello
    _asked: dict[int, _Asked[M]] = attrs.field(repr=False, factory=dict, init=False)
    _numbers: "itertools.count[int]" = attrs.field(repr=False, init=False)
    _last: int = attrs.field(repr=False, default=0, init=False)  # exchange we opened
    _outbox: Outbox = attrs.field(repr=False, init=False)
    _heart: Heartbeat = attrs.field(repr=False, factory=Heartbeat, init=False)
    _writer: FrameWriter = attrs.field(repr=False, init=False)
    _rest: trio.CancelScope = attrs.field(repr=False, factory=trio.CancelScope, init=False)  # until the next look
    _slices: int = attrs.field(repr=False, default=0, init=False)  # written at the last one
    _delivering: bool = attrs.field(repr=False, default=False, init=False)
    _last_write: trio.CancelScope = attrs.field(repr=False, factory=lambda: trio.CancelScope(shield=True), init=False)
    _scope: trio.CancelScope = attrs.field(repr=False, factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        self._codec = EnvelopeCodec(self.messages, self.messages)
        self._outbox = Outbox(self.settings.outbox)
        self._writer = FrameWriter(self.stream, self._outbox)
        self._numbers = itertools.count(1 if self.opened else 2, 2)

    # For everybody

    @property
    def rtt(self) -> float | None:
        """Seconds of a round trip, a moving mean over heartbeats; None before the first."""
        return self._heart.round_trip

    @property
    def missed(self) -> int:
        """Heartbeats in a row without a sign of life."""
        return self._heart.missed

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight; `used_at` says since when."""
        return self._outbox.is_idle and not self._asked

    async def send(self, message: M, body: bytes = b"", exchange: int = 0) -> None:
        """Queue a message; waits while more than the outbox's bound is unsent.

        Cancellation queues all of it or nothing. Raises PeerUnreachable once the link is closed, PeerRefused when the peer
        lacks the feature, FrameTooLarge.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._outbox.put(self._encode(message, body, exchange))
        self._check_open()

    def send_nowait(self, message: M, body: bytes = b"", exchange: int = 0) -> None:
        """Queue a message. Raises trio.WouldBlock when there is no room, and what `send` raises."""
        self._outbox.put_nowait(self._encode(message, body, exchange))

    async def ask(self, message: M, body: bytes = b"", *, timeout: float) -> Inbound[M]:
        """Send a question and return its answer.

        Raises what the peer failed with, and PeerUnreachable when the link ends or `timeout` seconds pass. Cancellation
        ends the wait; an answer that comes later is dropped.
        """
        exchange = self._last = next(self._numbers)
        asked = self._asked[exchange] = _Asked()
        try:
            with trio.move_on_after(timeout):
                await self.send(message, body, exchange)
                await asked.settled.wait()
        finally:
            del self._asked[exchange]
        if asked.answer is None:
            self._check_open()
            raise PeerUnreachable(f"{self.peer} did not answer within {timeout:.1f} s")
        if isinstance(asked.answer.message, Failed):
            raise error_from(asked.answer.message, PeerRefused)
        return asked.answer

    def compare(self, what: Compared) -> None:
        """Have heartbeats compare what both ends should have the same of."""
        self._heart.compared = what

    def close(self, why: str | MeshnodeError) -> None:
        """End the link; `run` returns soon. What is queued is dropped, questions in flight raise PeerUnreachable."""
        if self.closed.is_set():
            return
        self.ended_by = PeerUnreachable(why) if isinstance(why, str) else why
        self.closed.set()
        self._outbox.close()
        for asked in self._asked.values():
            asked.settled.set()
        self._scope.cancel()

    # For its owner

    async def exchange_hellos(self, ours: Hello) -> Hello:
        """Send our Hello and return the peer's; the first use of the stream. Raises PeerUnreachable, WireError, PeerRefused."""
        await self._writer.write(self._codec.encode(ours))
        while not self._early:
            data = await self._receive()
            if not data:
                raise PeerUnreachable(f"{self.peer} closed the link before it said anything")
            self._early.extend(self._codec.feed(data))
        first = self._early.pop(0).message
        if isinstance(first, Failed):
            raise PeerRefused(f"{self.peer} refuses the link: {first.message}")
        if not isinstance(first, Hello):
            raise WireError(f"{self.peer} begins with {type(first).__name__} instead of Hello")
        return first

    async def run(
        self,
        deliver: Callable[[Inbound[M]], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until the stream ends, the peer misbehaves, or `close`; `ended_by` then says why.

        `deliver` is awaited for each message that is not an answer; while it waits, nothing more is read, and so the peer's
        sends come to wait too. PeerMisbehaved from it closes the link, anything else ends `run`. Cancellation closes the link.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._write_until_the_end)
                nursery.start_soon(self._beat)
                task_status.started()
                try:
                    if not self.closed.is_set():
                        await self._read_until_the_end(deliver)
                finally:
                    self.close("this node has ended the link")
                    self._last_write.deadline = trio.current_time() + self.settings.goodbye
                    nursery.cancel_scope.cancel()
        finally:
            await self.end()

    async def end(self) -> None:
        """Close the stream, having told the peer why if that can still be done."""
        why = self.ended_by or PeerUnreachable("this node has ended the link")
        with trio.move_on_after(self.settings.goodbye, shield=True):
            try:
                if not self._writer.is_cut:
                    await self.stream.send_all(self._codec.encode(failure(why)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it is gone already
            await self.stream.aclose()

    # Sending

    def _encode(self, message: M, body: bytes, exchange: int) -> bytes:
        self._check_open()
        if self.terms is not None and feature_of(message) & ~self.terms.features:
            raise PeerRefused(f"{self.peer} does not offer {feature_of(message).name}")
        self.used_at = trio.current_time()
        return self._codec.encode(message, body, exchange)

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise PeerUnreachable(f"the link to {self.peer} has ended: {self.ended_by}") from self.ended_by

    async def _write_until_the_end(self) -> None:
        with self._last_write:  # which may end, whoever is cancelled: after half a frame nothing can be said any more
            try:
                await self._writer.run()
            except PeerUnreachable as error:
                with trio.move_on_after(self.settings.goodbye):
                    await self.closed.wait()  # why the peer hung up may have come, and be unread
                self.close(error)

    async def _beat(self) -> None:
        while True:
            self._look()
            with trio.move_on_after(self.settings.heartbeat) as self._rest:
                await trio.sleep_forever()

    def _look(self, asked: Ping | None = None) -> None:
        """Ask whether the peer lives, and count how often it has not shown it. Called for every beat, of ours or of the peer.

        Who opened the link asks; the other side hears by that that it lives, wakes only when it does not, and asks seldom.
        """
        is_busy = self._delivering or self._writer.slices != self._slices
        if is_busy:
            self._heart.heard()  # what says that the peer lives may lie unread here, or wait behind a long frame there
        self._slices = self._writer.slices
        if self._writer.waiting >= self.settings.stall:
            self.close(f"the peer has taken nothing for {self._writer.waiting:.0f} s")
        if asked is not None:
            self._rest.deadline = trio.current_time() + 1.5 * self.settings.heartbeat
            if asked.number % _MEASURE_EVERY and self._heart.round_trip is not None and self._heart.may_rest():
                return
        ping = self._heart.ping(measure=self._outbox.is_idle)
        if self._heart.missed >= self.settings.misses:
            self.close(f"no sign of life for {self._heart.missed * self.settings.heartbeat:.0f} s")
        self._outbox.put_first("ping", self._codec.encode(ping))

    # Receiving

    async def _read_until_the_end(self, deliver: Callable[[Inbound[M]], Awaitable[None]]) -> None:
        try:
            await self._take_all(iter(self._early), deliver)
            while data := await self._receive():
                await self._take_all(self._codec.feed(data), deliver)
                self._check_skipped()
            # Inside a message or not: a process that is killed leaves half of one, and is not to blame.
            self.close(f"{self.peer} has gone away")
        except WireError as error:
            misbehaved = PeerMisbehaved(f"{self.peer} broke the protocol: {error}")
            misbehaved.__cause__ = error
            self.close(misbehaved)
        except (PeerMisbehaved, PeerRefused) as error:
            self.close(error)

    async def _receive(self) -> bytes | bytearray:
        try:
            data = await self.stream.receive_some(_READ)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
        self._heart.heard()
        return data

    async def _take_all(
        self, envelopes: Iterator[Envelope[M]], deliver: Callable[[Inbound[M]], Awaitable[None]]
    ) -> None:
        for envelope in envelopes:
            message: msgspec.Struct = envelope.message
            if isinstance(message, Ping):
                if not self.opened:
                    self._look(message)
                self._outbox.put_first("pong", self._codec.encode(self._heart.pong(message)))
                continue
            if isinstance(message, Pong):
                self._heart.answered(message)
                continue
            self.used_at = trio.current_time()
            if self._settle(envelope):
                continue
            if isinstance(message, Hello):
                raise WireError("a second Hello")
            if isinstance(message, Failed) and not envelope.exchange:
                raise PeerRefused(f"{self.peer} has ended the link: {message.message}")
            if self.terms is not None and feature_of(message) & ~self.terms.features:
                raise WireError(f"{type(message).__name__}, which was not agreed on")
            self._delivering = True
            await deliver(Inbound(self, envelope.exchange, envelope.message, envelope.body))
            self._delivering = False

    def _check_skipped(self) -> None:
        """Unknown kinds are what a newer peer may send; others send nonsense."""
        if self._codec.skipped and self.terms is not None and not self.terms.is_newer:
            raise WireError("a message of a kind that its features do not announce")

    def _settle(self, envelope: Envelope[M]) -> bool:
        """Hand an answer to whoever asked; they may have stopped waiting. Say whether it was an answer."""
        exchange = envelope.exchange
        if not exchange or (exchange % 2 == 1) is not self.opened:
            return False
        if exchange > self._last:
            raise WireError(f"an answer to the question {exchange}, which was never asked")
        asked = self._asked.get(exchange)
        if asked is not None and asked.answer is None:
            asked.answer = Inbound(self, exchange, envelope.message, envelope.body)
            asked.settled.set()
        return True
