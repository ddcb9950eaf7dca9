"""The events of one answer on their way to its caller, who must not notice that its coordinator changes."""

import attrs
import trio

from meshnode.inference.calls import GenerationCall
from meshnode.inference.request_record import RequestRecord
from meshnode.types.generation import Delta, Finished, GenerationEvent, Started

__all__ = ["Reply"]


@attrs.define(eq=False)
class Reply:
    """Events on their way from whoever coordinates to the caller, who must not notice that it changed."""

    call: GenerationCall
    record: RequestRecord
    tokens: list[int]  # whose text the caller has
    owes_echo: bool = False  # the caller is to have the prompt's text first
    losses: int = 0
    losses_in_a_row: int = 0  # without text between them
    is_over: bool = False
    _route: str | None = None  # of the newest coordinator
    _text_at: float = attrs.field(factory=trio.current_time)
    _lost_at: float | None = None  # when the reader last had text, if a coordinator has been lost since
    _pause: float = 0.0  # seconds without text because of losses

    def lost(self) -> None:
        """Note that a coordinator was lost."""
        self.losses += 1
        self.losses_in_a_row += 1
        self._lost_at = self._text_at

    async def take(
        self, started: Started | None = None, delta: Delta | None = None, finished: Finished | None = None
    ) -> None:
        """Hand on one event."""
        if started is not None:
            is_first, self._route = self._route is None, started.route
            if is_first:
                await _send(self.call, self.record, started)
        if delta is not None:
            self._resumed()
            self.losses_in_a_row = 0
            self.owes_echo = False
            self.tokens += delta.tokens
            await _send(self.call, self.record, delta)
        if finished is not None:
            self._resumed()
            self.is_over = True
            await _send(self.call, self.record, self._accounted(finished))

    def _resumed(self) -> None:
        self._text_at = trio.current_time()
        if self._lost_at is not None:
            self._pause += self._text_at - self._lost_at
            self._lost_at = None

    def _accounted(self, finished: Finished) -> Finished:
        """Add the losses of coordinators to what the last of them tells."""
        if not self.losses:
            return finished
        return attrs.evolve(
            finished,
            route=finished.route or self._route or "",
            recoveries=finished.recoveries + self.losses,
            pause=round(finished.pause + self._pause, 3),
        )


async def _send(call: GenerationCall, record: RequestRecord, event: GenerationEvent) -> None:
    if isinstance(event, Started):
        record.start(event)
    elif isinstance(event, Finished):
        record.finish(event)
    await call.tell(event)
