"""One generation over an executor that may die on the way.

When the worker is lost, the session waits for its successor and replays prompt and answer so far. Since rows are invariant and
sampling is a function of (seed, position), the continuation is the one there would have been: the reader sees a pause.
"""

from collections.abc import Awaitable, Callable

import attrs
import structlog
import trio

from meshnode.engine.executor import Generation
from meshnode.errors import SessionLost, WorkerLost
from meshnode.inference.ports import SupervisedExecutor
from meshnode.types.generation import SamplingParameters, TokenEvent
from meshnode.types.ids import new_session_id

__all__ = ["Session", "Take"]

Take = Callable[[TokenEvent], Awaitable[bool]]
"""Hears each token once; returns whether more are wanted."""

_log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class Session:
    """Everything one generation knows; it lives and dies with its task."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParameters
    end_tokens: frozenset[int]
    max_recoveries: int = 3
    recovery_timeout: float = 60.0  # seconds for a lost worker to come back
    generated: list[int] = attrs.field(factory=list, init=False)
    recoveries: int = attrs.field(default=0, init=False)

    async def run(self, executor: SupervisedExecutor, take: Take) -> None:
        """Generate, handing each token to `take` once, until it returns False or the generation ends.

        Cancellation frees the session's memory. Raises OutOfMemory, and SessionLost when the worker cannot be replaced.
        """
        while True:
            await executor.ready()
            incarnation = executor.incarnation
            try:
                await self._attempt(executor, take)
            except WorkerLost as error:
                if self._is_complete:  # lost between the last token and the word that it was the last
                    return
                await self._recover(executor, incarnation, error)
            else:
                return

    @property
    def _is_complete(self) -> bool:
        ended = bool(self.generated) and self.generated[-1] in self.end_tokens
        return ended or len(self.generated) >= self.max_tokens

    async def _attempt(self, executor: SupervisedExecutor, take: Take) -> None:
        async with executor.generate(self._remainder()) as events:
            async for event in events:
                self.generated.append(event.token)
                if not await take(event):
                    return

    def _remainder(self) -> Generation:
        return Generation(
            session=new_session_id(),
            tokens=(*self.prompt, *self.generated),
            prompt_length=len(self.prompt),
            max_tokens=self.max_tokens - len(self.generated),
            sampling=self.sampling,
            end_tokens=self.end_tokens,
        )

    async def _recover(self, executor: SupervisedExecutor, incarnation: int, error: WorkerLost) -> None:
        self.recoveries += 1
        if self.recoveries > self.max_recoveries:
            raise SessionLost(f"the worker was lost {self.recoveries} times during this answer: {error}") from error
        _log.warning("worker lost, answer resumes", tokens_so_far=len(self.generated), error=str(error))
        with trio.move_on_after(self.recovery_timeout):
            while executor.incarnation == incarnation:  # a new attempt needs a new worker
                await trio.sleep(0.02)
                await executor.ready()
            return
        raise SessionLost(f"the worker did not come back within {self.recovery_timeout:.0f} s") from error
