"""The state of the mesh, from what this node has and what its peers say of themselves."""

from collections.abc import Iterable, Iterator, Mapping

from meshnode.placement.models import ModelFacts, Segment
from meshnode.placement.view import MemberView, MeshState
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.peers import Holding, Liveness, PeerInfo, Room

__all__ = ["names_of", "picture"]

_Said = tuple[PeerId, tuple[Holding, ...], Room]


def picture(own: PeerId, holdings: tuple[Holding, ...], room: Room, peers: Iterable[PeerInfo]) -> MeshState:
    """Return the state. Who takes no part in placement counts as a holder, and is never given anything to hold."""
    said: list[_Said] = [(own, holdings, room)]
    said += [
        (info.peer, info.offer.holdings, info.offer.room or Room())
        for info in peers
        if info.offer is not None and info.liveness is not Liveness.DEAD
    ]
    models = _models(said)
    return MeshState({peer: _member(peer, held, room, models) for peer, held, room in said}, models)


def names_of(holdings: tuple[Holding, ...], peers: Iterable[PeerInfo]) -> dict[ModelId, str]:
    """Return what models are called, by this node first."""
    offers = [info.offer for info in peers if info.offer is not None]
    every = (*(each for offer in offers for each in offer.holdings), *holdings)
    return {holding.model: holding.name for holding in every}


def _models(said: list[_Said]) -> Mapping[ModelId, ModelFacts]:
    demand: dict[ModelId, float] = {}
    pinned: set[ModelId] = set()
    largest: dict[ModelId, Holding] = {}  # whoever has most of a model knows best what a block weighs
    for _, holdings, room in said:
        for model, rate in room.demand:
            demand[model] = demand.get(model, 0.0) + rate
        pinned.update(room.pinned)
        for holding in holdings:
            before = largest.get(holding.model)
            if holding.blocks and (before is None or _count(holding) > _count(before)):
                largest[holding.model] = holding
    return {
        model: ModelFacts(
            model, holding.block_count, holding.nbytes // _count(holding), demand.get(model, 0.0), model in pinned
        )
        for model, holding in largest.items()
    }


def _member(
    peer: PeerId, holdings: tuple[Holding, ...], room: Room, models: Mapping[ModelId, ModelFacts]
) -> MemberView:
    held = frozenset(segment for holding in holdings for segment in _segments(holding, models.get(holding.model)))
    claimed = frozenset(
        segment
        for model, blocks in room.fetching
        if model in models
        for segment in models[model].segments()
        if all(block in blocks for block in models[model].blocks(segment.index))
    )
    return MemberView(peer, room.budget, held | claimed, claimed - held, room.uptime)


def _segments(holding: Holding, facts: ModelFacts | None) -> Iterator[Segment]:
    """Yield the segments that a node has whole, with what goes with the first and the last."""
    if facts is None or facts.block_count != holding.block_count:
        return
    for segment in facts.segments():
        blocks = facts.blocks(segment.index)
        whole = all(holding.has(block) for block in blocks)
        first, last = blocks.start == 0, blocks.stop == facts.block_count
        if whole and (holding.embedding or not first) and (holding.head or not last):
            yield segment


def _count(holding: Holding) -> int:
    return sum(len(blocks) for blocks in holding.blocks)
