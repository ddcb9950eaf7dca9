"""One stage of one session, run here for its coordinator (which may be this node).

Steps come in order from the previous stage, are acknowledged to the coordinator before work starts, computed by the model's
executor, and handed on. The task that serves a stage reserves its cache and owns it: when it ends, for whatever reason, the
memory is free.

Who sends the steps does what the coordinator tells it, as we do, and that one may tell us two different things. So only rows
that no stage makes, whatever it is told, are held against their sender.
"""

import contextlib
from collections.abc import Callable

import attrs
import structlog
import trio

from meshnode.engine.executor import StageReservation, StageResult, StageStep
from meshnode.errors import (
    BadRows,
    MeshnodeError,
    PeerMisbehaved,
    PeerUnreachable,
    RequestError,
    RingBroken,
    WorkerLost,
)
from meshnode.inference.models import LoadedModel
from meshnode.inference.ports import SupervisedExecutor
from meshnode.inference.stage_ring import StageRing
from meshnode.network.stage_links import StageLink, StageLinks
from meshnode.types.evidence import Evidence, Misdeed
from meshnode.types.ids import PeerId, SessionId, new_session_id
from meshnode.wire.failures import Failed, failure
from meshnode.wire.ring_messages import RingDoor
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    JoinRing,
    OpenStage,
    StageFailed,
    StageOpened,
    StageStepMessage,
    TurnRing,
)

__all__ = ["STEP_BUFFER", "HostedStage", "ReceivedStep"]

STEP_BUFFER = 16
"""Steps that may wait at a stage. A coordinator keeps fewer than this on their way, so one more is a mistake of a peer."""

_RELEASE_TIMEOUT = 5.0  # seconds to tell the worker; if it does not listen, it is being replaced
_TELL_TIMEOUT = 5.0  # seconds to tell the coordinator why a stage ends

_log = structlog.get_logger(__name__)


@attrs.frozen
class ReceivedStep:
    """A step and its rows."""

    message: StageStepMessage
    body: bytes


@attrs.frozen
class _Opening:
    """A wish to open the stage, or to open it again; `exchange` is what to answer it with."""

    message: OpenStage
    exchange: int


@attrs.define(eq=False)
class HostedStage:
    """The state of one stage of one session; its fields change only when the session is opened again after a loss."""

    opened: OpenStage
    coordinator: StageLink  # where answers go; the stage lives no longer than this link
    model: LoadedModel
    links: StageLinks
    report: Callable[[Evidence], None]
    cache_name: SessionId = attrs.field(factory=new_session_id, init=False)  # the executor's: nobody else can name it
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _last_step: int = attrs.field(default=0, init=False)  # taken, of this attempt
    _position: int | None = attrs.field(default=None, init=False)  # of the next row, once there was one in this attempt
    _send: trio.MemorySendChannel[ReceivedStep] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[ReceivedStep] = attrs.field(init=False)
    _wish: trio.MemorySendChannel[_Opening] = attrs.field(init=False)
    _wishes: trio.MemoryReceiveChannel[_Opening] = attrs.field(init=False)
    _opening: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)  # of the newest wish that was heard
    _ring: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)  # of this attempt
    _join: trio.MemorySendChannel[JoinRing] = attrs.field(init=False)
    _joins: trio.MemoryReceiveChannel[JoinRing] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[ReceivedStep](STEP_BUFFER)
        self._wish, self._wishes = trio.open_memory_channel[_Opening](4)
        self._join, self._joins = trio.open_memory_channel[JoinRing](4)

    def is_same_work(self, opened: OpenStage) -> bool:
        """Whether what is cached here serves the stage that `opened` asks for."""
        mine = self.opened
        return (mine.model, mine.blocks, mine.embedding, mine.head) == (
            opened.model,
            opened.blocks,
            opened.embedding,
            opened.head,
        )

    def open(self, message: OpenStage, exchange: int) -> None:
        """Have memory reserved, or kept, and `exchange` answered. Steps of earlier attempts are dropped from now on.

        Raises PeerMisbehaved when earlier wishes to open it again have not been heard yet.
        """
        try:
            self._wish.send_nowait(_Opening(message, exchange))
        except trio.WouldBlock:
            raise PeerMisbehaved("this stage is being opened again and again") from None
        self.opened, self._last_step, self._position = message, 0, None
        self._opening.cancel()  # it may wait for a neighbour that has gone
        self._ring.cancel()

    def join(self, message: JoinRing) -> bool:
        """Have the worker join the ring of this attempt, beside the steps; return whether it is asked for in good time."""
        if message.attempt != self.opened.attempt or not self.opened.ring:
            return False
        try:
            self._join.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True

    def turn(self, message: TurnRing) -> bool:
        """Let the ring turn on; return whether it is this attempt's."""
        if message.attempt != self.opened.attempt:
            return False
        with contextlib.suppress(WorkerLost):  # which the ring hears too
            self.model.executor.let_turn(self.cache_name, message.until)
        return True

    def push(self, sender: PeerId, step: ReceivedStep) -> bool:
        """Take a step; return whether it is one that was waited for.

        What is of another attempt, not from the previous stage, or was taken already is dropped. Raises RequestError when more
        steps are waiting than any coordinator sends.
        """
        message, opened = step.message, self.opened
        if message.attempt != opened.attempt or sender != opened.previous or message.step <= self._last_step:
            return False
        try:
            self._send.send_nowait(step)
        except trio.WouldBlock:
            raise RequestError("more steps at once than a coordinator sends; the stage is closed") from None
        self._last_step = message.step
        return True

    async def serve(self) -> None:
        """Open, and run steps until cancelled or the coordinator's link ends; then the memory is free."""
        with self.scope, self.model.session():
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_with_link)
                    nursery.start_soon(self._open_when_wished)
                    nursery.start_soon(self._keep_rings)
                    async for step in self._receive:
                        await self._run(self.opened, step)
            finally:
                with trio.move_on_after(_RELEASE_TIMEOUT, shield=True):
                    await _release(self.model.executor, self.cache_name)

    async def fail(self, error: MeshnodeError) -> None:
        """End, and tell the coordinator why."""
        self.scope.cancel()
        with trio.move_on_after(_TELL_TIMEOUT):
            await self._tell_failure(self.opened, error)

    async def _end_with_link(self) -> None:
        await self.coordinator.closed.wait()
        self.scope.cancel()

    async def _open_when_wished(self) -> None:
        """Reserve, and answer, beside the steps: a new reservation is what ends those that wait at the worker."""
        async for wish in self._wishes:
            if wish.message.attempt != self.opened.attempt:
                continue  # nobody waits for that answer any more
            reply: StageOpened | Failed | None = None
            with trio.CancelScope() as self._opening:
                try:
                    length = await self._reserve(wish.message)
                    reply = StageOpened(length, await self._open_door(wish.message))
                except MeshnodeError as error:
                    reply = failure(error)
            if reply is None:
                continue
            try:
                await self.coordinator.send(reply, exchange=wish.exchange)
            except PeerUnreachable:
                return  # its link ended, and this stage ends with it
            if isinstance(reply, Failed):
                self.scope.cancel()

    async def _reserve(self, opened: OpenStage) -> int:
        """Reserve, or keep, the memory; return how many positions it holds.

        Raises OutOfMemory, RequestError, WorkerLost, and PeerUnreachable when there is no link to the next stage.
        """
        if opened.next is not None:
            await self.links.to(opened.next)  # now, not in the first step
        return await self.model.executor.reserve(
            self.cache_name,
            StageReservation(
                blocks=opened.blocks,
                embedding=opened.embedding,
                head=opened.head,
                tokens=opened.tokens,
                prompt_length=opened.prompt_length,
                history=opened.history,
                sampling=opened.sampling,
                pages=opened.pages,
                asker=str(self.coordinator.peer),
            ),
        )

    async def _open_door(self, opened: OpenStage) -> RingDoor | None:
        """Expect the worker before ours, if that is wanted and can be. Raises WorkerLost, SessionLost."""
        place = self.links.ring_place() if opened.ring else None
        if place is None:
            return None
        try:
            return await self.model.executor.open_door(self.cache_name, place)
        except RingBroken as error:
            _log.info("no door for other workers", error=str(error))
            return None

    async def _keep_rings(self) -> None:
        """Be in the ring of the newest attempt; what ends it while the attempt lasts is told to the coordinator."""
        async for wish in self._joins:
            opened = self.opened
            if wish.attempt != opened.attempt:
                continue
            ring = StageRing(opened, self.cache_name, self.coordinator, self.model.executor, self.links)
            try:
                with trio.CancelScope() as self._ring:
                    await ring.keep(wish.door, tells=wish.tells)
            except PeerUnreachable:
                return  # the coordinator's link ended, and this stage ends with it
            except MeshnodeError as error:
                # Nobody is accused of bad rows here: the coordinator, too, knows the token that they came by.
                _log.warning("ring ended", session=opened.session, error=str(error))
                await self._tell_failure(opened, error)

    async def _run(self, opened: OpenStage, step: ReceivedStep) -> None:
        """Run one step; a failure is told to the coordinator, who decides what happens to the session."""
        message = step.message
        if message.attempt != opened.attempt:
            return  # it waited while the session was opened again
        try:
            await self._acknowledge(opened, message)
            result = await self.model.executor.step(self._executor_step(opened, step))
            await self._hand_on(opened, step, result)
        except MeshnodeError as error:
            if isinstance(error, BadRows):
                self.report(Evidence(opened.previous, Misdeed.WRONG_ROWS, str(error)))
            _log.warning("stage failed", session=opened.session, error=str(error))
            await self._tell_failure(opened, error)

    async def _acknowledge(self, opened: OpenStage, message: StageStepMessage) -> None:
        """Say that a step has come. Without a switch of tasks where there is room: the worker has it before this is sent."""
        acknowledged = Acknowledged(opened.session, opened.attempt, message.step, opened.index)
        try:
            self.coordinator.send_nowait(acknowledged)
        except trio.WouldBlock:
            await self.coordinator.send(acknowledged)

    async def _tell_failure(self, opened: OpenStage, error: MeshnodeError) -> None:
        blames = opened.next if isinstance(error, PeerUnreachable) else None
        failed = StageFailed(opened.session, opened.attempt, opened.index, error.code, str(error)[:500], blames)
        try:
            await self.coordinator.send(failed)
        except PeerUnreachable:
            return  # its link ended, and this stage ends with it

    def _executor_step(self, opened: OpenStage, step: ReceivedStep) -> StageStep:
        """Return the step as the executor has it.

        Raises BadRows for what is no rows at all, and RequestError for those that are not the next or of another model, which
        the coordinator can bring about.
        """
        message, nbytes = step.message, len(step.body)
        width = 4 if opened.embedding else self.model.row_bytes
        if message.rows < 1 or not nbytes or nbytes % (2 * message.rows):  # a number has two bytes, a token four
            raise BadRows(f"{nbytes} bytes are not {message.rows} rows")
        if nbytes != message.rows * width:
            raise RequestError(f"a step of {message.rows} rows of {width} bytes has {nbytes} bytes")
        if self._position not in (None, message.position):
            raise RequestError(f"a step from position {message.position}, while {self._position} is the next")
        self._position = message.position + message.rows
        return StageStep(
            session=self.cache_name,
            position=message.position,
            tokens=tuple(memoryview(step.body).cast("I")) if opened.embedding else (),
            activations=b"" if opened.embedding else step.body,
            sample=message.sample and opened.head,
            return_from=self._forward_from(opened, message),
            number=message.step,
            until=message.until if opened.index == 0 else 0,
        )

    def _forward_from(self, opened: OpenStage, message: StageStepMessage) -> int:
        starts = message.forward_from
        return starts[opened.index] if opened.index < len(starts) else 0

    async def _hand_on(self, opened: OpenStage, step: ReceivedStep, result: StageResult) -> None:
        """Send the rows on, or answer the coordinator: with a token, with rows, or that nobody further on needs them."""
        if result.goes_round:
            return
        message = step.message
        skipped = max(0, self._forward_from(opened, message) - message.position)
        if opened.next is None or skipped >= message.rows:
            answer = Answered(opened.session, opened.attempt, message.step, message.position, result.token)
            await self.coordinator.send(answer)
            return
        link = await self.links.to(opened.next)
        forwarded = StageStepMessage(
            session=opened.session,
            attempt=opened.attempt,
            index=opened.index + 1,
            step=message.step,
            position=message.position + skipped,
            rows=message.rows - skipped,
            sample=message.sample,
            forward_from=message.forward_from,
        )
        await link.send(forwarded, result.activations)


async def _release(executor: SupervisedExecutor, name: SessionId) -> None:
    try:
        await executor.release(name)
    except MeshnodeError:
        return  # a worker that is gone holds nothing
