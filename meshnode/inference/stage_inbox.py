"""Which stage message goes where: to a stage we host, a session we coordinate, or a request that one of us delegated."""

import attrs
import structlog
import trio

from meshnode.errors import PeerUnreachable
from meshnode.inference.coordination import Coordinator
from meshnode.inference.delegate_server import DelegateServer
from meshnode.inference.delegation import Delegations
from meshnode.inference.stage_server import StageServer
from meshnode.network.stage_links import Received, StageLink
from meshnode.observe.metrics import Metrics
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    CancelDelegation,
    CloseStage,
    Delegate,
    DelegatedEvents,
    DelegationFailed,
    GrantEvents,
    JoinRing,
    OpenStage,
    Probe,
    ProbeReply,
    RingJoined,
    StageFailed,
    StageStepMessage,
    TurnRing,
)

__all__ = ["StageInbox"]

_log = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class StageInbox:
    """One incarnation's recipients."""

    stages: StageServer
    coordinator: Coordinator
    delegations: Delegations
    delegates: DelegateServer
    nursery: trio.Nursery
    metrics: Metrics

    def take(self, received: Received) -> None:
        """Hand a message to its recipient; never waits. What is for nobody, or not the sender's to say, is counted."""
        link, message = received.link, received.message
        sender, is_taken = link.peer, True
        match message:
            case StageStepMessage():
                is_taken = self.stages.step(sender, message, received.body)
            case Acknowledged() | Answered() | RingJoined() | StageFailed():
                pipeline = self.coordinator.pipelines.get(message.session)
                is_taken = pipeline is not None and pipeline.push(sender, message)
            case DelegatedEvents() | DelegationFailed():
                is_taken = self.delegations.push(sender, message)
            case GrantEvents():
                self.delegates.grant(sender, message)
            case OpenStage():
                is_taken = self.stages.open(link, received.exchange, message)
            case JoinRing():
                is_taken = self.stages.join(sender, message)
            case TurnRing():
                is_taken = self.stages.turn(sender, message)
            case CloseStage():
                self.stages.close(sender, message)
            case Probe():
                self.nursery.start_soon(self._reply, link, received.exchange)
            case Delegate():
                self.delegates.start(link, message)
            case CancelDelegation():
                self.delegates.cancel(sender, message)
            case _:
                is_taken = False
        if not is_taken:
            kind = type(message).__struct_config__.tag
            self.metrics.inference_stray_messages_total.labels(kind=kind).inc()
            _log.debug("message for nobody", peer=sender, kind=kind)

    async def _reply(self, link: StageLink, exchange: int) -> None:
        try:
            await link.send(ProbeReply(), exchange=exchange)
        except PeerUnreachable:
            return
