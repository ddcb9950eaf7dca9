"""The MessageDispatcher: every message of a peer passes here, is counted against that peer's limits, and goes to its subsystem.

The sender of a message is the peer whose link it came on, authenticated by the transport; no message can name another. Steps of
sessions are bounded where they are held, so they have no limit of their own here; whatever makes new work has.

Control and stage links have a mailbox and a task each, so a subsystem that is slow, or being restarted, holds up the links
that lead to it and no others.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs
import msgspec
import structlog
import trio

from meshnode.errors import Overloaded, PeerUnreachable
from meshnode.flow.buckets import KeyedBuckets
from meshnode.flow.mailbox import Mailbox
from meshnode.network.ports import MessageLink
from meshnode.network.stage_links import AnyReceived, ControlReceived, Received
from meshnode.observe.metrics import Metrics
from meshnode.supervise.subsystem import Pulse
from meshnode.types.evidence import Evidence, Misdeed
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import (
    Introductions,
    IntroductionsWanted,
    KeptWanted,
    Records,
    SignedRecord,
    TicketRequest,
)
from meshnode.wire.failures import failure
from meshnode.wire.stage_messages import (
    Delegate,
    DelegationFailed,
    JoinRing,
    OpenStage,
    Probe,
    StageMessage,
    TurnRing,
)

__all__ = ["DispatcherResources", "MessageDispatcher"]

_RECIPIENT_PATIENCE = 1.0  # seconds a restarting subsystem may take before messages to it are dropped
_REFUSALS = 64  # of one peer that may wait until there is room for them on its link; beyond, it has to do without

_LIMITS: Mapping[type, tuple[float, float]] = {  # per second on average, and at once
    OpenStage: (50, 200),
    JoinRing: (50, 200),  # one for each that was opened, at most
    TurnRing: (500, 2000),  # one in some 32 tokens; a ring whose turn is dropped stands still
    Delegate: (50, 200),  # one for each text that a caller wants a vector of
    Probe: (20, 50),
    SignedRecord: (20, 100),
    Records: (20, 100),
    IntroductionsWanted: (1, 10),
    Introductions: (1, 5),
    TicketRequest: (2, 20),
    KeptWanted: (2, 100),
}

_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class DispatcherResources:
    """The channels between subsystems."""

    inbound: Mailbox[AnyReceived, None]  # from the control links of all peers
    stages: Mailbox[Received, None]  # to the InferenceRouter
    control: Mailbox[ControlReceived, None]  # to the NetworkManager
    evidence: Mailbox[Evidence, None]  # to the HealthMonitor
    metrics: Metrics
    inbound_stages: Mailbox[AnyReceived, None] = attrs.field(  # from the stage links
        factory=lambda: Mailbox("MessageDispatcher stages", 256)
    )


@attrs.define(eq=False)
class MessageDispatcher:
    """One incarnation."""

    _resources: DispatcherResources
    _pulse: Pulse
    _refusing: Counter[PeerId] = attrs.field(factory=Counter, init=False)
    _buckets: dict[type, KeyedBuckets] = attrs.field(
        factory=lambda: {kind: KeyedBuckets(rate, burst, 4096) for kind, (rate, burst) in _LIMITS.items()}, init=False
    )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dispatch until cancelled; what waits in the mailbox then is dispatched by the next incarnation."""
        resources = self._resources
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dispatch_all, resources.inbound_stages, nursery)
            await nursery.start(self._dispatch_all, resources.inbound, nursery)
            task_status.started()

    async def drain(self) -> None:
        """Nothing to do: links close before."""

    async def _dispatch_all(
        self,
        mailbox: Mailbox[AnyReceived, None],
        nursery: trio.Nursery,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with mailbox.serve(at_once=self._dispatched) as letters:
            task_status.started()
            while True:
                self._pulse.touch()
                letter = None
                with trio.move_on_after(1):
                    letter = await anext(letters)
                if letter is not None:
                    await self._dispatch(letter.question, nursery)

    def _dispatched(self, received: AnyReceived) -> bool:
        """Hand on, without a switch of tasks, what is within its limit while there is room; else it counts for two."""
        kind = type(received.message)
        bucket = self._buckets.get(kind)
        if bucket is not None and bucket.try_take(received.link.peer) is not None:
            return False
        try:
            self._recipient(received).tell_nowait(received)
        except trio.WouldBlock:
            return False
        self._resources.metrics.network_messages_total.labels(kind=kind.__struct_config__.tag).inc()
        return True

    async def _dispatch(self, received: AnyReceived, nursery: trio.Nursery) -> None:
        resources, kind = self._resources, type(received.message)
        resources.metrics.network_messages_total.labels(kind=kind.__struct_config__.tag).inc()
        bucket = self._buckets.get(kind)
        wait = None if bucket is None else bucket.try_take(received.link.peer)
        if wait is not None:
            # Of what a session needs, honest nodes send as much as their callers bring about: see decision 015.
            if not isinstance(received.message, StageMessage):
                self._report(Evidence(received.link.peer, Misdeed.FLOOD, f"too many messages of kind {kind.__name__}"))
            self._refuse(nursery, received, f"too many at once; try again in {math.ceil(wait)} s")
            return
        with trio.move_on_after(_RECIPIENT_PATIENCE) as patience:
            await self._recipient(received).tell(received)
        if patience.cancelled_caught:
            _log.warning("message dropped: its subsystem does not take any", kind=kind.__name__)
            self._refuse(nursery, received, "this node is restarting a part of itself; try again")

    def _recipient(self, received: AnyReceived) -> Mailbox[Any, None]:
        return self._resources.stages if isinstance(received.message, StageMessage) else self._resources.control

    def _report(self, evidence: Evidence) -> None:
        try:
            self._resources.evidence.tell_nowait(evidence)
        except trio.WouldBlock:
            return  # as much is waiting already against somebody

    def _refuse(self, nursery: trio.Nursery, received: AnyReceived, reason: str) -> None:
        """Tell a peer that waits for an answer."""
        refusal = _refusal(received, Overloaded(reason))
        if refusal is None:
            return
        link: MessageLink[Any] = received.link
        try:
            link.send_nowait(refusal, exchange=received.exchange)
        except PeerUnreachable:
            return
        except trio.WouldBlock:
            if self._refusing[link.peer] < _REFUSALS:
                self._refusing[link.peer] += 1
                nursery.start_soon(self._send_refusal, link, received.exchange, refusal)

    async def _send_refusal(self, link: MessageLink[Any], exchange: int, refusal: msgspec.Struct) -> None:
        try:
            await link.send(refusal, exchange=exchange)
        except PeerUnreachable:
            return
        finally:
            self._refusing[link.peer] -= 1
            if not self._refusing[link.peer]:
                del self._refusing[link.peer]


def _refusal(received: AnyReceived, error: Overloaded) -> msgspec.Struct | None:
    """Return what whoever waits for an answer is told, None where nobody waits. A delegation is answered by its name."""
    if isinstance(received.message, Delegate):
        return DelegationFailed(received.message.session, error.code, str(error))
    return failure(error) if received.exchange else None
