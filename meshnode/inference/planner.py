"""Chooses who runs which blocks of a session: a pure function of what peers offer.

A route is a shortest path over block borders. Going from border a to border b through a peer costs one visit (a fixed part
and the round trip to it: half on the way in, half on the way out of the ring) and (b - a) blocks of its measured time. Since
a visit's price does not depend on how many blocks it covers, each peer needs only the cheapest place to have been entered,
and all peers are advanced together, border by border: O(blocks) steps over arrays of peers.
"""

from collections.abc import Iterable, Sequence

import attrs
import numpy as np

from meshnode.errors import NoRoute
from meshnode.inference.privacy import Privacy
from meshnode.types.blocks import BlockRange, runs_of
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.peers import StageOffer
from meshnode.types.routes import Route, Stage

__all__ = ["MIXED", "Candidate", "RouteRequest", "plan_route"]

MIXED = "mixed"
_VISIT = 0.002  # seconds a stage border adds besides compute and network: two process borders and their frames
_MIN_BLOCK = 1e-6  # seconds: an offer cannot make itself free


@attrs.frozen
class Candidate:
    """A stage that may be used, by a peer that may see the request."""

    peer: PeerId
    offer: StageOffer
    round_trip: float  # seconds from here; 0 for ourselves
    sessions: int = 0  # that share its compute


@attrs.frozen
class RouteRequest:
    """What a route is wanted for."""

    model: ModelId
    block_count: int
    tokens: int  # positions of KV cache at every stage
    prompt_tokens: int = 0
    answer_tokens: int = 256  # expected: weighs prefill against decode
    coordinator: PeerId | None = None  # who must run the first stage; None: anybody
    drift_class: str | None = None  # to stay in, if it can be done
    barred: frozenset[PeerId] = frozenset()
    boomerang: PeerId | None = None  # who alone may see tokens: embedding and head stay there
    privacy: Privacy = Privacy.ANYONE  # how far its asker lets it travel, for who chooses the candidates
    peers: frozenset[PeerId] | None = None  # whom its asker lets see it, for the same; None: as the rule has it
    beginnings: tuple[bytes, ...] = ()  # names of those of its text, for who knows whose caches hold them


def plan_route(request: RouteRequest, candidates: Sequence[Candidate]) -> Route:
    """Return the cheapest route, within one drift class if there is one. Raises NoRoute, naming what is missing."""
    usable = sorted((each for each in candidates if _is_usable(request, each)), key=_nearest_first)
    classes = sorted({candidate.offer.drift_class for candidate in usable})
    if request.drift_class in classes:
        classes = [request.drift_class, *(name for name in classes if name != request.drift_class)]
    routes = []
    for name in classes:
        route = _cheapest(request, [each for each in usable if each.offer.drift_class == name], name)
        if route is not None:
            if name == request.drift_class:
                return route
            routes.append(route)
    if routes:
        return min(routes, key=lambda route: route.step_seconds)
    mixed = _cheapest(request, usable, MIXED)
    if mixed is None:
        raise NoRoute(_what_is_missing(request, usable))
    return mixed


def _nearest_first(candidate: Candidate) -> tuple[float, PeerId, BlockRange]:
    """Order candidates, so that equal meshes give equal routes in whatever order their peers are told."""
    return candidate.round_trip, candidate.peer, candidate.offer.blocks


def _is_usable(request: RouteRequest, candidate: Candidate) -> bool:
    offer = candidate.offer
    fits = offer.free_tokens >= request.tokens and offer.context_length >= request.tokens
    known = offer.model == request.model and offer.block_count == request.block_count
    return known and fits and candidate.peer not in request.barred and offer.blocks.end <= request.block_count


def _cheapest(request: RouteRequest, candidates: Sequence[Candidate], drift_class: str) -> Route | None:
    """Return the shortest path over borders 0 to block_count, or None."""
    if not candidates:
        return None
    ends = _Ends.of(request, candidates)
    if ends is None:
        return None
    count = request.block_count
    start = np.array([each.offer.blocks.start for each in candidates])
    end = np.array([each.offer.blocks.end for each in candidates])
    block = np.array([_block_seconds(request, each) for each in candidates])
    visit = np.array([_VISIT + each.round_trip for each in candidates])
    cost = np.full(count + 1, np.inf)  # of having computed all blocks below a border
    cost[0] = 0.0
    taken: list[tuple[int, int]] = [(0, 0)] * (count + 1)  # candidate and border it was entered at
    entered = np.full(len(candidates), np.inf)  # cost with the visit at the best entry, minus the blocks below it
    entry = np.zeros(len(candidates), dtype=int)
    for border in range(count):
        price = cost[border] + visit - border * block
        open_ = (start <= border) & (border < end) & (price < entered)
        if border == 0:
            open_ &= ends.may_begin
            price = np.where(ends.is_coordinator, 0.0, price)  # the ring is measured from its first stage
        entered = np.where(open_, price, entered)
        entry = np.where(open_, border, entry)
        through = np.where((start <= border) & (border < end), entered + (border + 1) * block, np.inf)
        if border + 1 == count:
            through = np.where(ends.may_end, through, np.inf)
        best = int(through.argmin())
        cost[border + 1], taken[border + 1] = through[best], (best, int(entry[best]))
    if not np.isfinite(cost[count]):
        return None
    chosen, border = [], count
    while border:
        index, begin = taken[border]
        chosen.append((candidates[index], BlockRange(begin, border)))
        border = begin
    return _route(request, list(reversed(chosen)), drift_class, float(cost[count]))


@attrs.frozen(eq=False)
class _Ends:
    """Who may run block 0, and who the last block."""

    may_begin: np.ndarray
    may_end: np.ndarray
    is_coordinator: np.ndarray  # who it is, if it is fixed

    @classmethod
    def of(cls, request: RouteRequest, candidates: Sequence[Candidate]) -> "_Ends | None":
        anybody = np.ones(len(candidates), dtype=bool)
        coordinator = request.coordinator if request.boomerang is None else request.boomerang
        is_coordinator = np.array([each.peer == coordinator for each in candidates])
        if request.boomerang is not None:
            asker = [each.offer for each in candidates if each.peer == request.boomerang]
            if not any(offer.embedding and offer.head for offer in asker):
                return None
            return cls(anybody, anybody, is_coordinator)
        may_begin = np.array([each.offer.embedding for each in candidates])
        if request.coordinator is not None:
            may_begin &= is_coordinator
        return cls(may_begin, np.array([each.offer.head for each in candidates]), is_coordinator)


def _block_seconds(request: RouteRequest, candidate: Candidate) -> float:
    """Return the time of one block per token of the answer, its share of the prefill and of the peer's other work included."""
    offer = candidate.offer
    prefill = offer.prefill_seconds * request.prompt_tokens / max(1, request.answer_tokens)
    return max(_MIN_BLOCK, offer.block_seconds + prefill) * (1 + candidate.sessions)


def _route(
    request: RouteRequest, chosen: list[tuple[Candidate, BlockRange]], drift_class: str, seconds: float
) -> Route:
    last = len(chosen) - 1
    keeper = request.boomerang
    stages = [
        Stage(each.peer, blocks, embedding=index == 0 and keeper is None, head=index == last and keeper is None)
        for index, (each, blocks) in enumerate(chosen)
    ]
    if keeper is not None:
        first, final = stages[0].peer == keeper, stages[-1].peer == keeper
        stages[0] = attrs.evolve(stages[0], embedding=first)
        stages[-1] = attrs.evolve(stages[-1], head=final)
        if not first:
            stages.insert(0, Stage(keeper, None, embedding=True))
        if not final:
            stages.append(Stage(keeper, None, head=True))
    where = f"{len(stages)} stages" if len(stages) > 1 else "one peer has all blocks"
    kind = "" if drift_class != MIXED else ", of mixed drift classes: no single class covers the model"
    reason = f"{where}, {seconds * 1e3:.1f} ms per token expected{kind}"
    return Route(request.model, tuple(stages), drift_class, reason, seconds)


def _what_is_missing(request: RouteRequest, candidates: Iterable[Candidate]) -> str:
    """Say which blocks nobody has, or which end."""
    offers = [candidate.offer for candidate in candidates]
    ranges = [offer.blocks for offer in offers]
    missing = [block for block in range(request.block_count) if not any(block in blocks for blocks in ranges)]
    if missing:
        runs = ", ".join(map(str, runs_of(missing)))
        return f"no reachable node that may be used holds blocks {runs} of {request.block_count}; start one that does"
    if request.boomerang is not None:
        return "embedding and head must stay on this node (inference.boomerang); run it with --model and --blocks of any block"
    if not any(offer.embedding and offer.blocks.start == 0 for offer in offers):
        return "no reachable node that may be used holds the embedding with block 0"
    if not any(offer.head and offer.blocks.end == request.block_count for offer in offers):
        return "no reachable node that may be used holds the head with the last block"
    return "the node that should coordinate does not hold the embedding with block 0"
