"""Which stage message goes where: to a stage we host, a session we coordinate, or a request that one of us delegated."""

import attrs
import structlog
import trio

from meshnode.errors import PeerMisbehaved, PeerUnreachable
from meshnode.inference.coordination import Coordinator
from meshnode.inference.delegate_server import DelegateServer
from meshnode.inference.delegation import Delegations
from meshnode.inference.stage_server import StageServer
from meshnode.network.stage_links import Received, StageLink
from meshnode.wire.stage_messages import (
    Acknowledged,
    Answered,
    CancelDelegation,
    CloseStage,
    Delegate,
    DelegatedEvents,
    DelegationFailed,
    GrantEvents,
    OpenStage,
    Probe,
    ProbeReply,
    StageFailed,
    StageStepMessage,
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

    def take(self, received: Received) -> None:
        """Hand a message to its recipient; never waits. What is for nobody is dropped."""
        link, message = received.link, received.message
        sender = link.peer
        match message:
            case StageStepMessage():
                try:
                    self.stages.step(sender, message, received.body)
                except PeerMisbehaved as error:
                    _log.warning("session dropped", peer=sender, error=str(error))
            case Acknowledged() | Answered() | StageFailed():
                pipeline = self.coordinator.pipelines.get(message.session)
                if pipeline is not None:
                    pipeline.push(sender, message)
            case DelegatedEvents() | DelegationFailed():
                self.delegations.push(sender, message)
            case GrantEvents():
                self.delegates.grant(sender, message)
            case OpenStage():
                self.nursery.start_soon(self._open, link, received.exchange, message)
            case CloseStage():
                self.stages.close(sender, message)
            case Probe():
                self.nursery.start_soon(self._reply, link, received.exchange)
            case Delegate():
                self.delegates.start(link, message)
            case CancelDelegation():
                self.delegates.cancel(sender, message)
            case _:
                _log.debug("message for nobody", peer=sender, kind=type(message).__name__)

    async def _open(self, link: StageLink, exchange: int, message: OpenStage) -> None:
        try:
            await self.stages.open(link, exchange, message)
        except PeerUnreachable:
            return  # and the stage ends with its link

    async def _reply(self, link: StageLink, exchange: int) -> None:
        try:
            await link.send(ProbeReply(), exchange=exchange)
        except PeerUnreachable:
            return
