"""Drives one attempt of a session over the stages of a route, as its coordinator.

    open every stage ── their caches reach L0, L1, … ──► replay from the lowest ──► decode: one trip round the ring per token

Rows below the lowest position that a stage or any stage behind it lacks are not sent to it, so after a loss only the new
stage, and those before it that have to make its input again, compute. Since rows are invariant, what they compute is what
was there before. A long prompt advances in chunks, several on their way at once, so that the stages overlap.
"""

from collections.abc import Iterable, Sequence

import attrs
import numpy as np
import trio

from meshnode.errors import (
    BadRows,
    GrammarRefused,
    MeshnodeError,
    OutOfMemory,
    Overloaded,
    PeerUnreachable,
    RequestError,
    RingBroken,
)
from meshnode.inference.hosted_stage import STEP_BUFFER
from meshnode.inference.laps import Laps
from meshnode.inference.losses import RingLost, StageLost, cause_of
from meshnode.inference.session import Session, Take
from meshnode.network.stage_links import StageLink, StageLinks
from meshnode.types.evidence import Misdeed
from meshnode.types.generation import TokenEvent
from meshnode.types.ids import PeerId, SessionId
from meshnode.types.routes import Route, Stage
from meshnode.wire.ring_messages import RingDoor
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    CloseStage,
    JoinRing,
    OpenStage,
    Probe,
    RingJoined,
    StageFailed,
    StageOpened,
    StageStepMessage,
    TurnRing,
)

__all__ = ["Pipeline", "PipelineTimes", "SessionMessage", "close_session"]

SessionMessage = Acknowledged | Answered | RingJoined | StageFailed

_WORTH_A_RING = 8  # tokens that are left
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
    door: RingDoor | None  # of its worker


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
    _send: trio.MemorySendChannel[SessionMessage | StageLost] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[SessionMessage | StageLost] = attrs.field(init=False)
    _stages: list[_OpenStage] = attrs.field(factory=list, init=False)
    _step: int = attrs.field(default=0, init=False)
    _sampling: int = attrs.field(default=0, init=False)  # the step that a token is wanted of
    _reached: dict[int, int] = attrs.field(factory=dict, init=False)  # steps on their way: the last stage that has each
    _patience: float = attrs.field(default=0.0, init=False)  # seconds the steps on their way should take at most
    _laps: Laps = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[SessionMessage | StageLost](_BUFFER)
        self._laps = Laps(len(self.route.stages), self.session.capacity - 1)

    def push(self, sender: PeerId, message: SessionMessage) -> bool:
        """Take what a peer says about this session, unless it is of another attempt, or not the sender's to say."""
        if message.attempt != self.attempt or not self._may_say(sender, message):
            return False
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            return False  # a flood: the quiet limit ends the attempt
        return True

    def _may_say(self, sender: PeerId, message: SessionMessage) -> bool:
        """Each stage speaks for itself, and about steps that are on their way; tokens come from the head alone."""
        stages = self.route.stages
        if isinstance(message, Answered):
            is_last = message.token is not None or message.step >= self._sampling > 0
            speaks = sender == stages[-1].peer or (sender == self.own and self._tells_itself)
            known = speaks if is_last else sender in self.route.peers
            return known and message.step in self._reached
        if not 0 <= message.index < len(stages) or stages[message.index].peer != sender:
            return False
        return isinstance(message, StageFailed | RingJoined) or message.index > self._reached.get(
            message.step, message.index
        )

    async def run(self, take: Take) -> None:
        """Generate until the end, handing each token to `take` once.

        Raises StageLost when a stage has to be replaced, RingLost when workers have lost each other. What the stages hold is
        kept, for another attempt: `close_session` frees it.
        """
        try:
            self._stages = await self._open_all()
            async with trio.open_nursery() as nursery:
                for each in self._stages:
                    nursery.start_soon(self._watch, each)
                # What nobody took over. Not waited for: whoever is frozen may have no room for another message.
                nursery.start_soon(close_session, self.links, self.before, self.session.id, self.attempt)
                nursery.start_soon(self._form_ring)
                try:
                    await self._generate(take)
                except RingLost:
                    await self._probe()  # the worker that is gone may have gone with its node
                    raise
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise cause_of(group) from None

    async def _generate(self, take: Take) -> None:
        session = self.session
        token = await self._replay()
        while True:
            session.token_came(token.token)
            lost = None if session.is_complete else await self._begin_next()
            if not await take(token) or session.is_complete:
                return
            if lost is not None:
                raise lost
            token = await self._token()

    async def _begin_next(self) -> StageLost | None:
        """See to the row of the newest token, so that the stages work while the reader is told of it; return what went wrong."""
        position = self.session.length - 1
        try:
            if position < self._laps.until:  # it goes round already
                self._sampling += 1
                if more := self._laps.move_on(position):
                    self._expect(more)
                    await self._tell_first(TurnRing(self.session.id, self.attempt, self._laps.until))
            else:
                await self._send_rows(position, position + 1, sample=True, until=self._laps.begin(position))
        except StageLost as lost:
            return lost
        return None

    # Steps

    async def _replay(self) -> TokenEvent:
        """Send every row that some stage lacks, the last one always, and return the token after it."""
        length = self.session.length
        lacking = [min(each.length for each in self._stages[index:]) for index in range(len(self._stages))]
        starts = [min(first, length - 1) for first in lacking]
        self.session.begun(starts[0])
        forward_from = (*starts[1:], 0)
        chunks = [(begin, min(begin + self.chunk, length)) for begin in range(starts[0], length, self.chunk)]
        window = min(len(self._stages) + 1, STEP_BUFFER // 2)
        while True:
            while chunks and len(self._reached) < window:
                begin, end = chunks.pop(0)
                await self._send_rows(begin, end, sample=end == length, forward_from=forward_from)
            answer = await self._answer()
            if answer.step == self._sampling:
                return self._sampled(answer)

    async def _send_rows(
        self, begin: int, end: int, *, sample: bool, forward_from: Sequence[int] = (), until: int = 0
    ) -> None:
        rows = np.asarray(self.session.tokens(begin, end), dtype="<u4").tobytes()
        step = self._step + 1
        self._expect(max(1, until - begin))
        message = StageStepMessage(
            session=self.session.id,
            attempt=self.attempt,
            index=0,
            step=step,
            position=begin,
            rows=end - begin,
            sample=sample,
            forward_from=tuple(forward_from),
            until=until,
        )
        self._sampling = step if sample else 0
        await self._tell_first(message, rows)
        self._patience = self.times.quiet + 4 * self.route.step_seconds * max(1, (end - begin) / 8)

    def _expect(self, steps: int) -> None:
        """Note that so many more steps are on their way."""
        for _ in range(steps):
            self._step += 1
            self._reached[self._step] = -1

    async def _tell_first(self, message: StageStepMessage | TurnRing, rows: bytes = b"") -> None:
        first = self._stages[0]
        try:
            with trio.move_on_after(self.times.open) as taken:
                await first.link.send(message, rows)
        except MeshnodeError as error:
            raise StageLost(first.stage.peer, str(error)) from error
        if taken.cancelled_caught:
            raise StageLost(first.stage.peer, f"it has taken nothing for {self.times.open:.0f} s")

    async def _token(self) -> TokenEvent:
        answer = await self._answer()
        while answer.step < self._sampling and answer.token is None:  # of a chunk that only a stage in front lacked
            answer = await self._answer()
        if answer.step != self._sampling:
            reason = f"it answered step {answer.step} where {self._sampling} is the next"
            raise StageLost(self.route.stages[-1].peer, reason, misdeed=Misdeed.WRONG_ROWS)
        return self._sampled(answer)

    def _sampled(self, answer: Answered) -> TokenEvent:
        if answer.token is None:
            raise StageLost(self.route.stages[-1].peer, "it answered the last row without a token")
        if not self.session.is_possible(answer.token):
            reason = "it answered with what is no token of this model"
            raise StageLost(self.route.stages[-1].peer, reason, misdeed=Misdeed.WRONG_ROWS)
        return answer.token

    async def _answer(self) -> Answered:
        """Return the next answer. Raises StageLost for a stage that failed, fell silent, or takes too long, and RingLost."""
        until = trio.current_time() + self.times.step
        while trio.current_time() < until:
            with trio.move_on_after(self._patience):
                message = await self._receive.receive()
                if isinstance(message, StageLost):
                    raise message
                if isinstance(message, StageFailed):
                    raise self._loss(message)
                if isinstance(message, RingJoined):
                    self._laps.joined(message.index)
                    continue
                if message.step not in self._reached:
                    continue  # said twice
                if isinstance(message, Answered):
                    del self._reached[message.step]
                    return message
                self._reached[message.step] = max(self._reached[message.step], message.index)
                continue
            await self._probe()
        if self._laps.until:  # of what goes round nobody acknowledges anything, so nobody can be named
            raise RingLost(f"no token for {self.times.step:.0f} s")
        oldest = self._stages[max(0, self._reached[min(self._reached)])]
        raise StageLost(oldest.stage.peer, f"no result for {self.times.step:.0f} s")

    def _loss(self, message: StageFailed) -> StageLost | RingLost:
        """Say who has to be replaced. One stage can blame a neighbour: who passed it rows, or whom it cannot reach.

        Raises GrammarRefused, which no other node would help with.
        """
        if message.code == GrammarRefused.code:
            raise GrammarRefused(message.message[:500])
        if message.code == RingBroken.code and self.session.rings:
            return RingLost(message.message[:500])
        stages, accuser = self.route.stages, self.route.stages[message.index].peer
        blamed = accuser
        if message.code in (RequestError.code, BadRows.code) and (message.index or self._laps.until):
            blamed = stages[message.index - 1].peer
        elif message.blames is not None and message.index + 1 < len(stages):
            blamed = stages[message.index + 1].peer
        if blamed == self.own:  # nobody tells us what we do
            return StageLost(accuser, message.message)
        return StageLost(blamed, message.message, accuser=None if accuser in (blamed, self.own) else accuser)

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
            pages=self.session.pages_for(stage),
            ring=self._wants_ring,
        )
        try:
            link = await self.links.to(stage.peer)
            reply = await link.ask(message, timeout=self.times.open)
        except GrammarRefused:
            raise  # by any other node too
        except MeshnodeError as error:
            busy = isinstance(error, OutOfMemory | Overloaded)
            raise StageLost(stage.peer, f"the stage did not open: {error}", busy=busy) from error
        if not isinstance(reply.message, StageOpened) or not reply.message.length >= 0:
            raise StageLost(stage.peer, "the stage answered with something else than that it is open")
        opened[index] = _OpenStage(stage, link, reply.message.length, reply.message.door)

    @property
    def _wants_ring(self) -> bool:
        """Whether the answer may be long enough for workers to be worth connecting."""
        session = self.session
        left = session.max_tokens - len(session.generated)
        return session.rings and len(self.route.stages) > 1 and left >= _WORTH_A_RING

    async def _form_ring(self) -> None:
        """Have each worker connect to the next. Not waited for: the ring turns as soon as all are there, if ever."""
        doors = [each.door for each in self._stages]
        teller = 0 if self._tells_itself else len(doors) - 1
        for index, each in enumerate(self._stages):
            door = doors[(index + 1) % len(doors)]
            if door is None or None in doors:
                return
            try:
                await each.link.send(JoinRing(self.session.id, self.attempt, index, door, index == teller))
            except MeshnodeError:
                return  # it speaks of no rings, a door is a mile wide, or a loss is noticed elsewhere

    @property
    def _tells_itself(self) -> bool:
        """Whether the ring's tokens come back to a worker of ours, which is the quickest way to hear of them."""
        return self.route.stages[0].peer == self.own

    async def _watch(self, each: _OpenStage) -> None:
        """Tell of a link that ended: after what came before, and without cutting off who hands a token to the reader."""
        await each.link.closed.wait()
        await self._send.send(StageLost(each.stage.peer, "its link ended"))

    async def _probe(self) -> None:
        """Ask every stage for a sign of life. Raises StageLost for one that gives none."""
        async with trio.open_nursery() as nursery:
            for each in self._stages:
                nursery.start_soon(self._probe_one, each)

    async def _probe_one(self, each: _OpenStage) -> None:
        try:
            await each.link.ask(Probe(), timeout=self.times.probe)
        except Overloaded:
            return  # that it is asked too often is a sign of life
        except MeshnodeError as error:
            raise StageLost(each.stage.peer, f"no sign of life: {error}") from error


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
