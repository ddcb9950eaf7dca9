"""Plans routes over what this node has loaded and what its peers offer, and waits when there is none yet."""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import trio

from meshnode.errors import NoRoute
from meshnode.inference.planner import Candidate, RouteRequest, plan_route
from meshnode.inference.ports import MeshView
from meshnode.inference.privacy import Privacy, may_see, stricter
from meshnode.inference.recent_routes import RecentRoutes
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import PeerId
from meshnode.types.peers import Holding, Liveness, Offer, PeerInfo, StageOffer
from meshnode.types.routes import Route
from meshnode.wire.stage_messages import MOST_PEERS

__all__ = ["Bar", "OwnStage", "RouteFinder", "not_loaded", "once_loaded"]

_UNKNOWN_ROUND_TRIP = 0.05  # seconds, for a peer known by hearsay
_SHUNNED = 60.0  # seconds: a peer that fails sessions in secret does so once a minute
# Seconds; doubled at each loss, so that six losses of one session at one peer last longer than it waits.
_FIRST_BAR = 5.0
_LOOK_AGAIN = 0.1  # seconds; a worker that comes back tells nobody


@attrs.frozen
class Bar:
    """Why one session goes past a peer for a while: it was lost there, and may have been no more than slow."""

    sequence: int  # what `RouteFinder.sequence` said of the peer then
    until: float  # on trio's clock; after that it is tried again, where there is no other route
    seconds: float  # how long it lasts

    @classmethod
    def after(cls, earlier: "Bar | None", sequence: int, *, for_good: bool = False) -> "Bar":
        """Return a bar that begins now and lasts twice as long as the one before it."""
        seconds = math.inf if for_good else _FIRST_BAR if earlier is None else 2 * earlier.seconds
        return cls(sequence, trio.current_time() + seconds, seconds)


@attrs.frozen
class OwnStage:
    """A stage loaded here."""

    offer: StageOffer
    incarnation: int  # of its worker; a later one has a larger number, of whatever model it is
    sessions: int


@attrs.frozen(eq=False)
class RouteFinder:
    """Every route of this node is planned here, so the privacy rule holds for all of them."""

    own: PeerId
    mesh: MeshView
    own_stages: Callable[[], tuple[OwnStage, ...]]  # whose worker is ready now
    privacy: Privacy
    boomerang: bool  # text and tokens stay here: embedding and head run on this node
    _recent: RecentRoutes = attrs.field(factory=RecentRoutes, init=False)
    # Sequence at the loss, until when.
    _shunned: dict[PeerId, tuple[int, float]] = attrs.field(factory=dict, init=False)
    # Of requests for a first route, by what they want; a line that nobody stands in is gone.
    _lines: weakref.WeakValueDictionary[RouteRequest, trio.Lock] = attrs.field(
        factory=weakref.WeakValueDictionary, init=False
    )

    def plan(self, request: RouteRequest) -> Route:
        """Return the cheapest route that the privacy rule allows, past those who failed lately if it can be done.

        Raises NoRoute.
        """
        if self.boomerang:
            request = attrs.evolve(request, boomerang=self.own)
        candidates = self._candidates(request)
        if shunned := self._shunned_now():
            try:
                return self._cheapest(attrs.evolve(request, barred=request.barred | shunned), candidates)
            except NoRoute:
                pass  # better than nothing
        return self._cheapest(request, candidates)

    def _cheapest(self, request: RouteRequest, candidates: Sequence[Candidate]) -> Route:
        """Return the cheapest route, of whose price reading is a part: those who have read the beginning read only the rest."""
        best = plan_route(request, candidates)
        readers, share = self._recent.readers(request.beginnings)
        if not readers or readers == best.peers:
            return best
        unread = attrs.evolve(request, prompt_tokens=round(request.prompt_tokens * (1 - share)))
        try:
            again = plan_route(unread, [each for each in candidates if each.peer in readers])
        except NoRoute:
            return best
        is_better = again.step_seconds < best.step_seconds and again.drift_class == best.drift_class
        return attrs.evolve(again, reason=f"{again.reason}, has read the beginning before") if is_better else best

    def shun(self, peer: PeerId, sequence: int) -> None:
        """Let new sessions go past a peer that one was lost at, for a while, or until its sequence differs."""
        self._shunned[peer] = (sequence, trio.current_time() + _SHUNNED)

    def remember(self, request: RouteRequest, route: Route) -> None:
        """Note who has read a request's text."""
        self._recent.note(request.beginnings, route)

    def rule(self, request: RouteRequest) -> Privacy:
        """Return how far a request may travel: as its asker and this node both allow."""
        return stricter(self.privacy, request.privacy)

    def named(self, request: RouteRequest) -> frozenset[PeerId] | None:
        """Return whom a coordinator elsewhere may show a request to, None if anybody: its network may not be ours.

        Where they are too many to be named, it is those that hold the model, and the nearest.
        """
        if self.rule(request) is Privacy.ANYONE:
            return request.peers

        def usefulness(peer: PeerInfo) -> tuple[bool, float]:
            holds = peer.offer is not None and any(stage.model == request.model for stage in peer.offer.stages)
            return not holds, math.inf if peer.round_trip is None else peer.round_trip

        best = sorted(self._allowed(request), key=usefulness)[: MOST_PEERS - 1]
        return frozenset({self.own, *(peer.peer for peer in best)})

    async def line_up(self, request: RouteRequest, patience: float, loading: float) -> None:
        """Wait as `wait` does until there is a route. Raises NoRoute.

        Of all who want the same only the first in line looks: there may be hundreds, and each look is a plan.
        """
        came = trio.current_time()
        async with self._lines.setdefault(request, trio.Lock()):
            waited = trio.current_time() - came
            await self.wait(request, {}, frozenset(), patience - waited, loading - waited)

    async def wait(
        self,
        request: RouteRequest,
        barred: Mapping[PeerId, Bar],
        busy: frozenset[PeerId],
        patience: float,
        loading: float = 0.0,
    ) -> Route:
        """Plan, waiting up to `patience` seconds for somebody to come whose absence is why there is no route.

        A barred peer may be used again once its sequence differs, which is a new fact, or its bar has ended; as it is shunned
        still, that is where there is no way past it. Who holds what lacks is loading it, anew for example because more of it has
        come there, and may be waited for longer, up to `loading` seconds. Raises NoRoute.
        """
        began = trio.current_time()
        while True:
            still = frozenset(peer for peer, bar in barred.items() if self._holds(bar, peer))
            version = self.mesh.changed.version
            try:
                return self.plan(attrs.evolve(request, barred=still | busy))
            except NoRoute as error:
                waited = trio.current_time() - began
                if busy:
                    raise
                if waited >= patience:
                    if not loading or not self._is_loading(attrs.evolve(request, barred=still)):
                        raise
                    if waited >= loading:
                        raise NoRoute(f"{error}; what lacks lies on disks, and was not loaded in time") from error
            with trio.move_on_after(_LOOK_AGAIN):
                await self.mesh.changed.changed(version)

    def sequence(self, peer: PeerId) -> int:
        """Return a number that changes when a node says something new about itself or is linked anew; -1: it is not there."""
        if peer == self.own:
            # Of whichever model the newest is: one that comes back is newer than all that were there when it was lost.
            return max((stage.incarnation for stage in self.own_stages()), default=-1)
        for known in self.mesh.peers():
            if known.peer == peer:
                # Both only grow. What a node says may be the same before and after its network, and no more, has crashed.
                return -1 if known.offer is None else known.offer.sequence + known.links
        return -1

    def _holds(self, bar: Bar, peer: PeerId) -> bool:
        return trio.current_time() < bar.until and self.sequence(peer) == bar.sequence

    def _shunned_now(self) -> frozenset[PeerId]:
        for peer, (sequence, until) in list(self._shunned.items()):
            if trio.current_time() >= until or self.sequence(peer) != sequence:
                del self._shunned[peer]
        return frozenset(self._shunned)

    def _is_loading(self, request: RouteRequest) -> bool:
        """Whether there will be a route as soon as the nodes have loaded what they hold."""
        coming = [
            Candidate(peer.peer, once_loaded(holding, blocks, request.tokens), _UNKNOWN_ROUND_TRIP)
            for peer in self._allowed(request)
            if peer.offer is not None and peer.liveness is not Liveness.DEAD
            for holding, blocks in not_loaded(peer.offer)
            if holding.model == request.model
        ]
        if not coming:
            return False
        if self.boomerang:
            request = attrs.evolve(request, boomerang=self.own)
        try:
            plan_route(request, [*self._candidates(request), *coming])
        except NoRoute:
            return False
        return True

    def _allowed(self, request: RouteRequest) -> list[PeerInfo]:
        rule = self.rule(request)
        return [peer for peer in self.mesh.peers() if may_see(peer, rule, request.peers)]

    def _candidates(self, request: RouteRequest) -> list[Candidate]:
        found = [Candidate(self.own, stage.offer, 0.0, stage.sessions) for stage in self.own_stages()]
        for peer in self._allowed(request):
            if peer.offer is None or peer.liveness is Liveness.DEAD:
                continue
            round_trip = _UNKNOWN_ROUND_TRIP if peer.round_trip is None else peer.round_trip
            found += (Candidate(peer.peer, stage, round_trip, peer.offer.sessions) for stage in peer.offer.stages)
        return found


def not_loaded(offer: Offer) -> Iterator[tuple[Holding, BlockRange]]:
    """Yield what a node keeps and has not loaded yet: of parts of a model the longest run, and a whole model if it is alone."""
    alone = sum(holding.is_whole for holding in offer.holdings) <= 1
    for holding in offer.holdings:
        if holding.blocks and (alone or not holding.is_whole):
            blocks = max(holding.blocks, key=len)  # the first of equals
            loaded = [stage.blocks for stage in offer.stages if stage.model == holding.model]
            if not any(each.start <= blocks.start and blocks.end <= each.end for each in loaded):
                yield holding, blocks


def once_loaded(holding: Holding, blocks: BlockRange, tokens: int) -> StageOffer:
    """Return what may be offered of a holding, as far as a request for so many tokens minds."""
    return StageOffer(
        model=holding.model,
        name=holding.name,
        block_count=holding.block_count,
        hidden_size=0,
        context_length=tokens,
        blocks=blocks,
        embedding=holding.embedding,
        head=holding.head,
        drift_class="",
        block_seconds=0.0,
        prefill_seconds=0.0,
        free_tokens=tokens,
        aliases=holding.aliases,
    )
