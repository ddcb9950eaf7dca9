"""What the stages of one attempt say to its coordinator: each what is its to say, and once.

An answer is taken from the one stage that gives it, an acknowledgement once for each stage and step, a failure once from each
stage. So no more lies unread than is on its way, and nobody pushes out what another says by saying something again and again.
That a chunk of a prompt is done is heard when all stages in front have acknowledged it: who said so too early would have more
sent to them than they take.
"""

import attrs
import trio

from meshnode.inference.laps import Laps
from meshnode.inference.losses import StageLost
from meshnode.types.ids import PeerId
from meshnode.types.routes import Route
from meshnode.wire.stage_messages import Acknowledged, Answered, RingJoined, StageFailed

__all__ = ["AttemptInbox", "SessionMessage"]

SessionMessage = Acknowledged | Answered | RingJoined | StageFailed

_MOST_STEPS = 128
"""On their way at once: as many as a ring turns ahead of its reader, and what is left of a prompt's chunks."""


@attrs.define(eq=False)
class _Step:
    """A step on its way."""

    by: int  # the stage that answers it
    lacking: set[int]  # stages that have not acknowledged it
    is_answered: bool = False  # though the answer has not been read
    early: Answered | None = None  # waits until stages in front have acknowledged

    @property
    def reached(self) -> int:
        """The stage that has it: the one before the first that has not acknowledged it, or that one if others behind it have."""
        first = min(self.lacking, default=self.by + 1)
        return max(0, first - 1) if self.lacking.issuperset(range(first, self.by + 1)) else first


@attrs.define(eq=False)
class AttemptInbox:
    """Fed by `push`, read with `next`."""

    own: PeerId
    route: Route
    attempt: int
    laps: Laps
    _send: trio.MemorySendChannel[Answered | StageFailed | StageLost] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[Answered | StageFailed | StageLost] = attrs.field(init=False)
    _steps: dict[int, _Step] = attrs.field(factory=dict, init=False)  # on their way, by number
    _newest: int = attrs.field(default=0, init=False)  # number of the last step
    _failed: set[int] = attrs.field(factory=set, init=False)  # stages that have said so
    _heard_at: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        # For each step an answer, and from each stage that it failed and that its link ended.
        most = _MOST_STEPS + 2 * len(self.route.stages)
        self._send, self._receive = trio.open_memory_channel[Answered | StageFailed | StageLost](most)

    def __len__(self) -> int:
        """Return how many steps are on their way."""
        return len(self._steps)

    @property
    def teller(self) -> int:
        """The stage whose worker tells of what goes round: the first if it is ours, which is the quickest way to hear of it."""
        return 0 if self.route.stages[0].peer == self.own else len(self.route.stages) - 1

    @property
    def oldest(self) -> int:
        """The stage that has the oldest step on its way."""
        return self._steps[min(self._steps)].reached

    def expect(self, by: int) -> int:
        """Note that one more step is on its way, which stage `by` is to answer; return its number."""
        return self._expect(_Step(by, set(range(by + 1))))

    def expect_laps(self, count: int) -> None:
        """Note that so many more steps go round by themselves. Nobody acknowledges those."""
        for _ in range(count):
            self._expect(_Step(self.teller, set()))

    def _expect(self, step: _Step) -> int:
        self._newest += 1
        self._steps[self._newest] = step
        return self._newest

    def push(self, sender: PeerId, message: SessionMessage) -> bool:
        """Take what a peer says, unless it is of another attempt, not the sender's to say, or nothing new."""
        if message.attempt != self.attempt:
            return False
        if isinstance(message, Answered):
            return self._answered(sender, message)
        stages, index = self.route.stages, message.index
        if not 0 <= index < len(stages) or stages[index].peer != sender:
            return False
        match message:
            case Acknowledged():
                return self._acknowledged(message)
            case RingJoined():
                return self.laps.joined(index)
            case StageFailed():
                is_new = index not in self._failed
                self._failed.add(index)
                return is_new and self._put(message)

    def _acknowledged(self, message: Acknowledged) -> bool:
        step = self._steps.get(message.step)
        if step is None or message.index not in step.lacking:
            return False
        step.lacking.discard(message.index)
        self._heard_at = trio.current_time()
        if step.early is not None and not step.lacking:
            self._put(step.early)
            step.early = None
        return True

    def _answered(self, sender: PeerId, message: Answered) -> bool:
        """Take an answer from the stage that gives it; a token from the head alone, or of what goes round from our worker."""
        step = self._steps.get(message.step)
        if step is None or step.is_answered or sender != self.route.stages[step.by].peer:
            return False
        if message.token is not None and step.by not in (self.teller, len(self.route.stages) - 1):
            return False
        step.is_answered = True
        step.lacking.discard(step.by)
        if message.token is None and step.lacking:
            step.early = message
            return True
        return self._put(message)

    def _put(self, message: Answered | StageFailed) -> bool:
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True

    async def lost(self, loss: StageLost) -> None:
        """Add that a stage is lost, after what has come from it before."""
        await self._send.send(loss)

    async def next(self, patience: float) -> Answered | StageFailed | StageLost | None:
        """Return what was said next; None once nothing, not even an acknowledgement, has come for `patience` seconds.

        Cancellation loses nothing.
        """
        self._heard_at = trio.current_time()
        while (left := self._heard_at + patience - trio.current_time()) > 0:
            with trio.move_on_after(left):
                message = await self._receive.receive()
                if isinstance(message, Answered):
                    del self._steps[message.step]
                return message
        return None
