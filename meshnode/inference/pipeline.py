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
from meshnode.inference.attempt_inbox import AttemptInbox, SessionMessage
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
    Answered,
    CloseStage,
    JoinRing,
    OpenStage,
    Probe,
    StageFailed,
    StageOpened,
    StageStepMessage,
    TurnRing,
)

__all__ = ["Pipeline", "PipelineTimes", "close_session"]

_WORTH_A_RING = 8  # tokens that are left


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
    _stages: list[_OpenStage] = attrs.field(factory=list, init=False)
    _sampling: int = attrs.field(default=0, init=False)  # the step that a token is wanted of
    _patience: float = attrs.field(default=0.0, init=False)  # seconds the steps on their way should take at most
    _laps: Laps = attrs.field(init=False)
    _inbox: AttemptInbox = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._laps = Laps(len(self.route.stages), self.session.capacity - 1)
        self._inbox = AttemptInbox(self.own, self.route, self.attempt, self._laps)

    def push(self, sender: PeerId, message: SessionMessage) -> bool:
        """Take what a peer says about this session; return whether it was its to say, and new."""
        return self._inbox.push(sender, message)

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
                    self._inbox.expect_laps(more)
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
            while chunks and len(self._inbox) < window:
                begin, end = chunks.pop(0)
                await self._send_rows(begin, end, sample=end == length, forward_from=forward_from)
            answer = await self._answer()
            if answer.step == self._sampling:
                return self._sampled(answer)

    async def _send_rows(
        self, begin: int, end: int, *, sample: bool, forward_from: Sequence[int] = (), until: int = 0
    ) -> None:
        rows = np.asarray(self.session.tokens(begin, end), dtype="<u4").tobytes()
        last = len(self._stages) - 1
        # Behind this stage nobody lacks any of these rows, unless it is the last.
        by = next((index for index, start in enumerate(forward_from[:last]) if start >= end), last)
        step = self._inbox.expect(self._inbox.teller if until else by)
        self._inbox.expect_laps(max(0, until - end))
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
        while answer.step < self._sampling:  # of a chunk that only a stage in front lacked
            answer = await self._answer()
        # Any stage in front of the last can have it do so, with a step of its own making.
        if answer.step != self._sampling:
            raise RingLost(f"step {answer.step} was answered where {self._sampling} is the next")
        return self._sampled(answer)

    def _sampled(self, answer: Answered) -> TokenEvent:
        peer, token = self.route.stages[-1].peer, answer.token
        if token is None:
            raise StageLost(peer, "it answered the last row without a token")
        if not self.session.knows(token):
            raise StageLost(peer, "it answered with what is no token of this model", misdeed=Misdeed.WRONG_ROWS)
        # Rows that are too few or far too large have an honest head do so, too.
        if not self.session.is_possible(token):
            raise StageLost(peer, "it answered with more or less than was asked for, or with numbers that are none")
        return token

    async def _answer(self) -> Answered:
        """Return the next answer. Raises StageLost for a stage that failed, fell silent, or takes too long, and RingLost."""
        with trio.move_on_after(self.times.step):
            while True:
                match await self._inbox.next(self._patience):
                    case None:
                        await self._probe()
                    case StageLost() as loss:
                        raise loss
                    case StageFailed() as failed:
                        raise self._loss(failed)
                    case answer:
                        return answer
        if self._laps.until:  # of what goes round nobody acknowledges anything, so nobody can be named
            raise RingLost(f"no token for {self.times.step:.0f} s")
        oldest = self._stages[self._inbox.oldest]
        raise StageLost(oldest.stage.peer, f"no result for {self.times.step:.0f} s")

    def _loss(self, message: StageFailed) -> StageLost | RingLost:
        """Say who has to be replaced. One stage can blame a neighbour: who passed it rows, or whom it cannot reach.

        Raises GrammarRefused, which no other node would help with.
        """
        if message.code == GrammarRefused.code and self._has_grammar(self.route.stages[message.index]):
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

    def _has_grammar(self, stage: Stage) -> bool:
        """Whether a stage enforces a grammar, and so may refuse it: the one that samples, of a session that has one."""
        return stage.head and self.session.sampling.grammar is not None

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
        except MeshnodeError as error:
            if isinstance(error, GrammarRefused) and self._has_grammar(stage):
                raise  # by any other node too
            if stage.peer == self.own and isinstance(error, PeerUnreachable) and index + 1 < len(stages):
                # We always reach ourselves. Our stage waits for a link to the next one, which may be frozen.
                raise StageLost(stages[index + 1].peer, f"our stage has no link to it: {error}") from error
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
        for index, each in enumerate(self._stages):
            door = doors[(index + 1) % len(doors)]
            if door is None or None in doors:
                return
            try:
                await each.link.send(JoinRing(self.session.id, self.attempt, index, door, index == self._inbox.teller))
            except MeshnodeError:
                return  # it speaks of no rings, a door is a mile wide, or a loss is noticed elsewhere

    async def _watch(self, each: _OpenStage) -> None:
        """Tell of a link that ended: after what came before, and without cutting off who hands a token to the reader."""
        await each.link.closed.wait()
        await self._inbox.lost(StageLost(each.stage.peer, "its link ended"))

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
