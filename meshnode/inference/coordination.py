"""Runs sessions from this node to their end, over as many routes as that takes.

A loss bars the peer for this session, for a while or until something new is heard of it, and the session goes on over the
next best route with the tokens it has. The reader sees a pause.
"""

import os
from collections.abc import Callable
from functools import partial

import attrs
import structlog
import trio

from meshnode.engine.executor import Generation
from meshnode.engine.prefixes import PAGE, PageNames
from meshnode.errors import NoRoute, OutOfMemory, SessionLost, WorkerLost
from meshnode.inference.losses import RingLost, StageLost
from meshnode.inference.models import LoadedModel
from meshnode.inference.pipeline import Pipeline, PipelineTimes, close_session
from meshnode.inference.planner import RouteRequest
from meshnode.inference.route_finder import Bar, RouteFinder
from meshnode.inference.session import Session, Take
from meshnode.network.stage_links import StageLinks
from meshnode.types.evidence import Evidence
from meshnode.types.ids import ModelId, PeerId, SessionId, new_session_id
from meshnode.types.routes import Route

__all__ = ["Coordinator", "Patience"]

_log = structlog.get_logger(__name__)


@attrs.frozen
class Patience:
    """How long a session waits for others, in seconds, and how many losses it outlives."""

    first_route: float = 5.0
    new_route: float = 60.0  # after a loss: a worker that reloads a large model needs that long
    # A node that has on disk what lacks is loading it, alone or among others. Some never do: no turn is held for them before
    # there is an answer.
    loading: float = 30.0
    busy: float = 0.5  # before a peer without room is asked again
    losses_in_a_row: int = 5  # without a token between them: the request itself may be what kills workers
    pipeline: PipelineTimes = attrs.field(factory=PipelineTimes)


def _forget(evidence: Evidence) -> None:
    """Do what a node does that has no peers."""


@attrs.define(eq=False)
class Coordinator:
    """What sessions coordinated here share."""

    finder: RouteFinder
    links: StageLinks
    model_of: Callable[[ModelId], LoadedModel | None]  # that is ready
    is_wanted: Callable[[ModelId], bool]  # whether a worker of this node that is gone will come back
    chunk: int  # rows of a prompt per step through a pipeline
    patience: Patience = Patience()
    report: Callable[[Evidence], None] = _forget
    pipelines: dict[SessionId, Pipeline] = attrs.field(factory=dict, init=False)  # that run now
    _secret: bytes = attrs.field(factory=partial(os.urandom, 32), init=False)

    @property
    def own(self) -> PeerId:
        """This node."""
        return self.finder.own

    async def run(self, session: Session, request: RouteRequest, take: Take, first: Route | None = None) -> None:
        """Generate until the session is complete or `take` wants no more, over the route `first` as long as it holds.

        Cancellation frees what the session holds, on every node. Raises NoRoute when nobody is left to run it, OutOfMemory
        when it fits nowhere, SessionLost after too many losses.
        """
        barred: dict[PeerId, Bar] = {}
        busy: frozenset[PeerId] = frozenset()
        used: frozenset[PeerId] = frozenset()
        accusers: set[PeerId] = set()
        attempt = 0
        route = first
        session.id = new_session_id(self.own)
        try:
            while not session.is_complete:
                # There was a route, and the reader has been told so: a worker that loads other blocks now will be back.
                comes_back = session.recoveries and self.is_wanted(request.model)
                patience = self.patience.new_route if comes_back else self.patience.first_route
                try:
                    loading = self.patience.loading if session.recoveries else 0.0
                    route = route or await self.finder.wait(request, barred, busy, patience, loading)
                except NoRoute as error:
                    if not busy and session.recoveries:
                        raise SessionLost(
                            f"what was lost did not come back within {patience:.0f} s: {error}"
                        ) from error
                    if not busy:
                        raise
                    busy = frozenset()
                    await trio.sleep(self.patience.busy)
                    continue
                request = attrs.evolve(request, drift_class=route.drift_class)
                session.goes_over(route)
                attempt += 1
                incarnation = self.finder.sequence(self.own)
                try:
                    await self._attempt(session, route, take, attempt, used)
                except RingLost as lost:
                    used |= route.peers
                    session.rings = False
                    _log.info("workers have lost each other, the answer goes on", error=str(lost))
                except StageLost as lost:
                    used |= route.peers
                    route, session.rings = None, True  # who broke the ring may be who is lost
                    if lost.busy:
                        busy |= {lost.peer}
                        continue
                    peer = lost.peer
                    if lost.accuser is not None:  # one of two; who blames a second peer is the one that is wrong
                        peer = lost.accuser if lost.accuser in accusers else lost.peer
                        accusers.add(lost.accuser)
                    # Our own worker may be back before its loss is noticed; of others we hear later than of the loss.
                    sequence = incarnation if peer == self.own else self.finder.sequence(peer)
                    for_good = peer == self.own or lost.misdeed is not None
                    barred[peer] = Bar.after(barred.get(peer), sequence, for_good=for_good)
                    self.finder.shun(peer, sequence)
                    self._note_loss(session, lost)
                else:
                    used |= route.peers
                    return
        finally:
            if used or session.route is not None:
                peers = used | (session.route.peers if session.route is not None else frozenset())
                with trio.move_on_after(1, shield=True):
                    await close_session(self.links, peers, session.id, attempt + 1)

    async def _attempt(
        self, session: Session, route: Route, take: Take, attempt: int, before: frozenset[PeerId]
    ) -> None:
        if len(route.stages) == 1 and route.coordinator == self.own:
            await self._run_here(session, route, take)
            return
        # The last row is always computed, and all that are read. Names are made with a secret, so that they tell other
        # nodes nothing of the text.
        tokens = () if session.reads_prompt else session.tokens(0, session.length - 1)
        session.pages = PageNames(self._secret + session.asker.encode()).of(tokens, len(tokens) // PAGE)
        chunk = session.length if session.in_one_step else self.chunk
        pipeline = Pipeline(self.own, self.links, session, route, chunk, self.patience.pipeline, attempt, before)
        self.pipelines[session.id] = pipeline
        try:
            await pipeline.run(take)
        finally:
            del self.pipelines[session.id]

    async def _run_here(self, session: Session, route: Route, take: Take) -> None:
        """Let the worker of the whole model run on its own. Raises StageLost."""
        model = self.model_of(route.model)
        if model is None:
            raise StageLost(self.own, "the worker has just gone")
        generation = Generation(
            session=new_session_id(),
            tokens=session.tokens(0, session.length),
            prompt_length=len(session.prompt),
            max_tokens=session.max_tokens - len(session.generated),
            sampling=session.sampling,
            end_tokens=session.end_tokens,
            asker=session.asker,
        )
        try:
            async with model.executor.generate(generation) as events:
                with model.session():
                    async for event in events:
                        session.begun(events.cached_tokens)
                        session.token_came(event.token)
                        if not await take(event):
                            return
        except WorkerLost as error:
            raise StageLost(self.own, str(error)) from error
        except OutOfMemory as error:
            if not model.sessions:
                raise  # nobody holds, and will give back, what this session lacks
            raise StageLost(self.own, str(error), busy=True) from error

    def _note_loss(self, session: Session, lost: StageLost) -> None:
        session.lost()
        if lost.misdeed is not None:
            self.report(Evidence(lost.peer, lost.misdeed, str(lost)))
        _log.warning("stage lost, answer resumes", tokens_so_far=len(session.generated), error=str(lost))
        if session.losses_in_a_row > self.patience.losses_in_a_row:
            raise SessionLost(f"a stage was lost {session.losses_in_a_row} times at the same token: {lost}")
