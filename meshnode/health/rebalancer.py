"""The ShardRebalancer: says when members have come or gone for good, so that shards are looked at before their usual time.

One who is back within the grace counts as never gone: what it holds is still on its disk. Each node waits a little longer or
shorter, and which of them acts is decided by rank, so that a leave sets no herd in motion.
"""

import random

import attrs
import trio

from meshnode.flow.broadcast import Broadcast, Overflow
from meshnode.flow.latest import Latest
from meshnode.health.monitor import MembershipEvent, PeerJoined
from meshnode.supervise.subsystem import Pulse
from meshnode.types.ids import PeerId

__all__ = ["RebalancerSettings", "ShardRebalancer"]

_PULSE_EVERY = 5.0  # seconds


@attrs.frozen
class RebalancerSettings:
    """Times in seconds."""

    grace: float = 60.0  # after the first change
    jitter: float = 30.0  # on top, at random


@attrs.define(eq=False)
class ShardRebalancer:
    """One incarnation."""

    _events: Broadcast[MembershipEvent]
    _nudge: Latest[int]  # written by this subsystem alone
    _pulse: Pulse
    _settings: RebalancerSettings = attrs.field(factory=RebalancerSettings)
    _changed: dict[PeerId, bool] = attrs.field(
        factory=dict, init=False
    )  # who has come (True) or gone since the last nudge
    _due: float | None = attrs.field(default=None, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        with self._events.subscribe(256, Overflow.DROP_OLDEST) as events:
            task_status.started()
            while True:
                self._pulse.touch()
                event = None
                with trio.move_on_after(_PULSE_EVERY):
                    event = await anext(events)
                if event is not None:
                    self._note(event)
                if self._due is not None and trio.current_time() >= self._due:
                    self._settle()

    async def drain(self) -> None:
        """Nothing to do."""

    def _note(self, event: MembershipEvent) -> None:
        has_come = isinstance(event, PeerJoined)
        if self._changed.get(event.peer) is (not has_come):
            del self._changed[event.peer]  # back, or gone again: as before
        else:
            self._changed[event.peer] = has_come
        if self._due is None:
            pause = self._settings.grace + random.random() * self._settings.jitter  # noqa: S311
            self._due = trio.current_time() + pause

    def _settle(self) -> None:
        self._due = None
        if self._changed:
            self._changed.clear()
            self._nudge.set(self._nudge.value + 1)
