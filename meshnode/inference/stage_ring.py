"""What the daemon of a stage does while workers hand tokens on among themselves: it passes on what it hears of that."""

import attrs
import structlog

from meshnode.engine.executor import RingSign, RingToken
from meshnode.errors import RingBroken
from meshnode.inference.ports import SupervisedExecutor
from meshnode.network.stage_links import StageLink, StageLinks
from meshnode.types.ids import SessionId
from meshnode.wire.ring_messages import RingDoor
from meshnode.wire.stage_messages import Answered, OpenStage, RingJoined

__all__ = ["StageRing"]

_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class StageRing:
    """One stage's part in the ring of one attempt."""

    opened: OpenStage
    cache_name: SessionId
    coordinator: StageLink
    executor: SupervisedExecutor
    links: StageLinks

    async def keep(self, door: RingDoor, *, tells: bool) -> None:
        """Connect to the next worker and tell the coordinator what is heard, until cancelled or the ring ends.

        A ring that never came about is no failure. Raises RingBroken for one that did, what a lap failed with, WorkerLost, and
        PeerUnreachable when the coordinator is gone.
        """
        opened, entered = self.opened, False
        try:
            async with self.executor.ring(self.cache_name, door, tells=tells) as events:
                async for event in events:
                    self.links.activations_pass()
                    if isinstance(event, RingToken):
                        answer = Answered(opened.session, opened.attempt, event.step, event.position, event.event)
                        await self.coordinator.send(answer)
                    elif event is RingSign.ENTERED:
                        entered = True
                        await self.coordinator.send(RingJoined(opened.session, opened.attempt, opened.index))
        except RingBroken as error:
            if entered:
                raise
            _log.info("tokens go by way of the daemons", session=opened.session, why=str(error))
