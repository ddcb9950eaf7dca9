"""All stages that this node runs for coordinators, itself among them: who may open one, and which message is for which."""

from collections.abc import Callable

import attrs
import structlog
import trio

from meshnode.errors import (
    MeshnodeError,
    NoRoute,
    Overloaded,
    PeerMisbehaved,
    PeerUnreachable,
    RequestError,
    SessionLost,
)
from meshnode.inference.closed_sessions import ClosedSessions
from meshnode.inference.hosted_stage import HostedStage, ReceivedStep
from meshnode.inference.losses import hangs_up
from meshnode.inference.models import LoadedModel
from meshnode.network.stage_links import StageLink, StageLinks
from meshnode.types.evidence import Evidence
from meshnode.types.ids import ModelId, PeerId, SessionId, owner_of
from meshnode.wire.failures import failure
from meshnode.wire.stage_messages import CloseStage, JoinRing, OpenStage, StageStepMessage, TurnRing

__all__ = ["StageServer"]

_log = structlog.get_logger(__name__)
_Key = tuple[SessionId, int]


@attrs.define(eq=False)
class StageServer:
    """Hosted stages by session and place in the route; each is a task of `nursery` and gone when its task is.

    Nothing here waits, so what a coordinator sends takes effect in the order in which it was sent.
    """

    links: StageLinks
    model_of: Callable[[ModelId], LoadedModel | None]  # that is ready
    limit: int  # stages at once; one coordinator may have half of them
    nursery: trio.Nursery
    report: Callable[[Evidence], None]
    _stages: dict[_Key, HostedStage] = attrs.field(factory=dict, init=False)
    _closed: ClosedSessions = attrs.field(factory=ClosedSessions, init=False)

    def __len__(self) -> int:
        return len(self._stages)

    def open(self, link: StageLink, exchange: int, message: OpenStage) -> bool:
        """Open a stage, or open it again under a higher attempt, and have `exchange` answered.

        Return whether this was the sender's to ask. It is held against nobody: what an honest coordinator sends over two links
        comes in any order.
        """
        try:
            if owner_of(message.session) != link.peer:
                raise PeerMisbehaved("this session belongs to another coordinator")
            if self._closed.has(link.peer, message.session, message.attempt):
                raise SessionLost("this attempt has been closed already")
            if message.head and message.next is not None:
                raise RequestError("the stage with the head is the last one; nothing comes after it")
            model = self.model_of(message.model)
            if model is None:
                raise NoRoute("this node does not have that model loaded now")
            stage = self._kept(link, message)
            if stage is None:
                stage = self._begin(link, message, model)
            stage.open(message, exchange)
        except MeshnodeError as error:
            self.nursery.start_soon(_refuse, link, exchange, error)
            return not isinstance(error, PeerMisbehaved)
        return True

    def step(self, sender: PeerId, message: StageStepMessage, body: bytes) -> bool:
        """Hand a step to its stage; return whether there is one that waits for it."""
        stage = self._stages.get((message.session, message.index))
        if stage is None or stage.scope.cancel_called:
            return False
        try:
            return stage.push(sender, ReceivedStep(message, body))
        except RequestError as error:
            _log.warning("stage closed", session=message.session, peer=sender, error=str(error))
            self.nursery.start_soon(stage.fail, error)
            return False

    def join(self, coordinator: PeerId, message: JoinRing) -> bool:
        """Have a stage's worker join its ring; return whether there is such a stage."""
        stage = self._of(coordinator, message.session, message.index)
        return stage is not None and stage.join(message)

    def turn(self, coordinator: PeerId, message: TurnRing) -> bool:
        """Let a ring turn on that begins here; return whether there is one."""
        stage = self._of(coordinator, message.session, 0)
        return stage is not None and stage.turn(message)

    def _of(self, coordinator: PeerId, session: SessionId, index: int) -> HostedStage | None:
        stage = self._stages.get((session, index))
        return stage if stage is not None and stage.coordinator.peer == coordinator else None

    def close(self, coordinator: PeerId, message: CloseStage) -> None:
        """Free what lower attempts of a session hold here, and open none of them any more.

        A coordinator closes over the link that it has now, which may overtake a wish on the one before.
        """
        self._closed.close(coordinator, message.session, message.below)
        for key, stage in list(self._stages.items()):
            mine = key[0] == message.session and stage.coordinator.peer == coordinator
            if mine and stage.opened.attempt < message.below:
                stage.scope.cancel()

    def _begin(self, link: StageLink, message: OpenStage, model: LoadedModel) -> HostedStage:
        """Start the task of a new stage. Raises Overloaded."""
        theirs = sum(stage.coordinator.peer == link.peer for stage in self._stages.values())
        if len(self._stages) >= self.limit or theirs >= max(1, self.limit // 2):
            raise Overloaded(f"this node runs {len(self._stages)} stages already, {theirs} of them for you")
        stage = HostedStage(message, link, model, self.links, self.report)
        self._stages[message.session, message.index] = stage
        self.nursery.start_soon(self._serve, stage)
        return stage

    def _kept(self, link: StageLink, message: OpenStage) -> HostedStage | None:
        """Find the stage of an earlier attempt whose cache serves this one, and end what else is in its way."""
        there = [(key, stage) for key, stage in self._stages.items() if key[0] == message.session]
        for key, stage in there:
            if stage.opened.attempt >= message.attempt and key[1] == message.index:
                raise PeerMisbehaved("this stage is open already")
        found: HostedStage | None = None
        for key, stage in there:
            does_it = stage.is_same_work(message)
            if stage.opened.attempt >= message.attempt or not (does_it or key[1] == message.index):
                continue
            del self._stages[key]
            if does_it and found is None and stage.coordinator is link and not stage.scope.cancel_called:
                found = stage
            else:
                stage.scope.cancel()  # what is not counted must not run on
        if found is not None:
            self._stages[message.session, message.index] = found
        return found

    async def _serve(self, stage: HostedStage) -> None:
        """Run one stage to its end; nothing it raises is the router's crash."""
        try:
            with hangs_up(stage.coordinator):
                await stage.serve()
        except Exception as error:  # noqa: BLE001  # the stage's rim
            _log.error("hosted stage crashed", session=stage.opened.session, exc_info=error)
            await stage.fail(MeshnodeError("the stage crashed; the log of its node says why"))
        finally:
            self._stages = {key: each for key, each in self._stages.items() if each is not stage}


async def _refuse(link: StageLink, exchange: int, error: MeshnodeError) -> None:
    try:
        await link.send(failure(error), exchange=exchange)
    except PeerUnreachable:
        return
