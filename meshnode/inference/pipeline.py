"""Drives one attempt of a session over the stages of a route, as its coordinator.

    open every stage ── their caches reach L0, L1, … ──► replay from the lowest ──► decode: one trip round the ring per token

Rows below the lowest position that a stage or any stage behind it lacks are not sent to it, so after a loss only the new
stage, and those before it that have to make its input again, compute. Since rows are invariant, what they compute is what
was there before. A long prompt advances in chunks, several on their way at once, so that the stages overlap.
"""

from collections.abc import Iterable, Iterator, Sequence

import attrs
import numpy as np
import trio

from meshnode.errors import MeshnodeError, OutOfMemory, Overloaded, PeerUnreachable, RequestError
from meshnode.inference.hosted_stage import STEP_BUFFER
from meshnode.inference.losses import StageLost
from meshnode.inference.session import Session, Take
from meshnode.network.stage_links import StageLink, StageLinks
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import PeerId, SessionId
from meshnode.types.routes import Route, Stage
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    CloseStage,
    OpenStage,
    Probe,
    StageFailed,
    StageOpened,
    StageStepMessage,
)

__all__ = ["Pipeline", "PipelineTimes", "SessionMessage", "close_session"]

SessionMessage = Acknowledged | Answered | StageFailed

_BUFFER = 256
"""Messages of one session that may lie unread: an acknowledgement per stage and an answer for each step on its way."""


@attrs.frozen
class PipelineTimes:
    """Patience, in seconds."""

    open: float = 5.0  # for a stage to reserve its memory
    quiet: float = 1.5  # without acknowledgement or answer beyond what the step should take, before stages are probed
    probe: float = 1.5  # for a sign of life
    step: float = 60.0  # for a step whose stages all live


@attrs.define(eq=False)
class _OpenStage:
    """A stage that has been opened."""

    stage: Stage
    link: StageLink
    length: int  # positions in its cache


@attrs.define(eq=False)
class Pipeline:
    """One attempt. Feed what peers say about it to `push`."""

    own: PeerId
    links: StageLinks
    session: Session
    route: Route
    chunk: int  # rows of a prompt per step
    times: PipelineTimes = PipelineTimes()
    attempt: int = 1
    before: frozenset[PeerId] = frozenset()  # peers of earlier attempts
    _send: trio.MemorySendChannel[SessionMessage] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[SessionMessage] = attrs.field(init=False)
    _stages: list[_OpenStage] = attrs.field(factory=list, init=False)
    _step: int = attrs.field(default=0, init=False)
    _reached: int = attrs.field(default=0, init=False)  # the last stage that acknowledged the oldest open step
    _patience: float = attrs.field(default=0.0, init=False)  # seconds the steps on their way should take at most

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[SessionMessage](_BUFFER)

    def push(self, sender: PeerId, message: SessionMessage) -> None:
        """Take what a peer says about this session; what is of another attempt, or not the sender's to say, is dropped."""
        if message.attempt != self.attempt:
            return
        if not isinstance(message, Answered):
            stages = self.route.stages
            if message.index >= len(stages) or stages[message.index].peer != sender:
                return
        elif sender not in self.route.peers:
            return
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            return  # a flood: the quiet limit ends the attempt

    async def run(self, take: Take) -> None:
        """Generate until the end, handing each token to `take` once.

        Raises StageLost when a stage has to be replaced. What the stages hold is kept, for another attempt: `close_session`
        frees it.
        """
        try:
            self._stages = await self._open_all()
            await close_session(self.links, self.before, self.session.id, self.attempt)  # what nobody took over
            async with trio.open_nursery() as nursery:
                for each in self._stages:
                    nursery.start_soon(self._watch, each)
                await self._generate(take)
                nursery.cancel_scope.cancel()
        except* StageLost as group:
            raise _one_of(group) from None

    async def _generate(self, take: Take) -> None:
        session = self.session
        token = await self._replay()
        while True:
            session.token_came(token.token)
            if not await take(token) or session.is_complete:
                return
            await self._send_rows(session.length - 1, session.length, sample=True)
            token = await self._token()

    # Steps

    async def _replay(self) -> TokenEvent:
        """Send every row that some stage lacks, the last one always, and return the token after it."""
        length = self.session.length
        lacking = [min(each.length for each in self._stages[index:]) for index in range(len(self._stages))]
        starts = [min(first, length - 1) for first in lacking]
        forward_from = (*starts[1:], 0)
        chunks = [(begin, min(begin + self.chunk, length)) for begin in range(starts[0], length, self.chunk)]
        window = min(len(self._stages) + 1, STEP_BUFFER // 2)
        sent = 0
        while True:
            while chunks and sent < window:
                begin, end = chunks.pop(0)
                await self._send_rows(begin, end, sample=end == length, forward_from=forward_from)
                sent += 1
            answer = await self._answer()
            sent -= 1
            if answer.position + self.chunk >= length or answer.token is not None:
                return self._sampled(answer)

    async def _send_rows(self, begin: int, end: int, *, sample: bool, forward_from: Sequence[int] = ()) -> None:
        rows = np.asarray(self.session.tokens(begin, end), dtype="<u4").tobytes()
        self._step += 1
        message = StageStepMessage(
            session=self.session.id,
            attempt=self.attempt,
            index=0,
            step=self._step,
            position=begin,
            rows=end - begin,
            sample=sample,
            forward_from=tuple(forward_from),
        )
        first = self._stages[0]
        try:
            await first.link.send(message, rows)
        except PeerUnreachable as error:
            raise StageLost(first.stage.peer, str(error)) from error
        self._patience = self.times.quiet + 4 * self.route.step_seconds * max(1, (end - begin) / 8)

    async def _token(self) -> TokenEvent:
        return self._sampled(await self._answer())

    def _sampled(self, answer: Answered) -> TokenEvent:
        if answer.token is None:
            raise StageLost(self.route.stages[-1].peer, "it answered the last row without a token")
        return answer.token

    async def _answer(self) -> Answered:
        """Return the next answer. Raises StageLost for a stage that failed, fell silent, or takes too long."""
        began = trio.current_time()
        self._reached = 0
        while True:
            with trio.move_on_after(self._patience):
                message = await self._receive.receive()
                if isinstance(message, Answered):
                    return message
                if isinstance(message, StageFailed):
                    raise self._loss(message)
                self._reached = max(self._reached, message.index)
                continue
            await self._probe()
            if trio.current_time() - began > self.times.step:
                peer = self._stages[self._reached].stage.peer
                raise StageLost(peer, f"no result for {self.times.step:.0f} s")

    def _loss(self, message: StageFailed) -> MeshnodeError:
        peer = self.route.stages[message.index].peer
        if message.code == RequestError.code:  # it refuses rows that another made: theirs are not to be trusted either
            peer = self.route.stages[max(0, message.index - 1)].peer
        return StageLost(message.blames or peer, message.message)

    # Stages

    async def _open_all(self) -> list[_OpenStage]:
        """Open all stages side by side."""
        opened: list[_OpenStage | None] = [None] * len(self.route.stages)
        async with trio.open_nursery() as nursery:
            for index in range(len(opened)):
                nursery.start_soon(self._open, index, opened)
        return [each for each in opened if each is not None]

    async def _open(self, index: int, opened: list[_OpenStage | None]) -> None:
        stages, stage = self.route.stages, self.route.stages[index]
        head = stage.head
        message = OpenStage(
            session=self.session.id,
            attempt=self.attempt,
            model=self.route.model,
            index=index,
            blocks=stage.blocks,
            embedding=stage.embedding,
            head=head,
            tokens=self.session.capacity,
            previous=self.own if index == 0 else stages[index - 1].peer,
            next=None if index == len(stages) - 1 else stages[index + 1].peer,
            prompt_length=len(self.session.prompt) if head else 0,
            history=tuple(self.session.generated) if head else (),
            sampling=self.session.sampling if head else None,
        )
        try:
            link = await self.links.to(stage.peer)
            reply = await link.ask(message, timeout=self.times.open)
        except MeshnodeError as error:
            busy = isinstance(error, OutOfMemory | Overloaded)
            raise StageLost(stage.peer, f"the stage did not open: {error}", busy=busy) from error
        if not isinstance(reply.message, StageOpened) or not reply.message.length >= 0:
            raise StageLost(stage.peer, "the stage answered with something else than that it is open")
        opened[index] = _OpenStage(stage, link, reply.message.length)

    async def _watch(self, each: _OpenStage) -> None:
        await each.link.closed.wait()
        raise StageLost(each.stage.peer, "its link ended")

    async def _probe(self) -> None:
        """Ask every stage for a sign of life. Raises StageLost for one that gives none."""
        async with trio.open_nursery() as nursery:
            for each in self._stages:
                nursery.start_soon(self._probe_one, each)

    async def _probe_one(self, each: _OpenStage) -> None:
        try:
            await each.link.ask(Probe(), timeout=self.times.probe)
        except MeshnodeError as error:
            raise StageLost(each.stage.peer, f"no sign of life: {error}") from error


def _one_of(group: BaseExceptionGroup[StageLost]) -> StageLost:
    """Return one of the losses that came together, one that is no mere lack of room if there is such."""
    losses = list(_leaves(group))
    return next((loss for loss in losses if not loss.busy), losses[0])


def _leaves(group: BaseExceptionGroup[StageLost]) -> Iterator[StageLost]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def close_session(links: StageLinks, peers: Iterable[PeerId], session: SessionId, below: int) -> None:
    """Tell peers to free what attempts below `below` hold. Who cannot be reached frees it with the link."""
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(_close_at, links, peer, CloseStage(session, below))


async def _close_at(links: StageLinks, peer: PeerId, message: CloseStage) -> None:
    try:
        link = links.existing(peer)
        if link is not None:
            await link.send(message)
    except PeerUnreachable:
        return
