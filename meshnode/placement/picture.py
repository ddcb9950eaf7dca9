"""The state of the mesh, from what this node has and what its peers say of themselves."""

import statistics
from collections.abc import Iterable, Mapping

import attrs

from meshnode.placement.models import ModelFacts, Segment
from meshnode.placement.view import MemberView, MeshState
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.peers import Holding, Liveness, PeerInfo, Room, StageOffer

__all__ = ["names_of", "picture"]

_SPEEDS = 0.5, 2.0  # times the median: how fast a node is counts, and must not outweigh everything else


@attrs.frozen
class _Said:
    """What one member says of itself."""

    peer: PeerId
    holdings: tuple[Holding, ...]
    room: Room
    stages: tuple[StageOffer, ...] = ()


def picture(
    own: PeerId,
    holdings: tuple[Holding, ...],
    room: Room,
    peers: Iterable[PeerInfo],
    stages: tuple[StageOffer, ...] = (),
) -> MeshState:
    """Return the state. Who takes no part in placement counts as a holder, and is never given anything to hold."""
    said = [_Said(own, holdings, room, stages)]
    said += [
        _Said(info.peer, info.offer.holdings, info.offer.room or Room(), info.offer.stages)
        for info in peers
        if info.offer is not None and info.liveness is not Liveness.DEAD
    ]
    models = _models(said)
    speeds = _speeds(said, models)
    return MeshState({each.peer: _member(each, models, speeds.get(each.peer, 1.0)) for each in said}, models)


def names_of(holdings: tuple[Holding, ...], peers: Iterable[PeerInfo]) -> dict[ModelId, str]:
    """Return what models are called, by this node first."""
    offers = [info.offer for info in peers if info.offer is not None]
    every = (*(each for offer in offers for each in offer.holdings), *holdings)
    return {holding.model: holding.name for holding in every}


def _models(said: list[_Said]) -> Mapping[ModelId, ModelFacts]:
    demand: dict[ModelId, float] = {}
    pinned: set[ModelId] = set()
    largest: dict[ModelId, Holding] = {}  # whoever has most of a model knows best what a block weighs
    for each in said:
        for model, rate in each.room.demand:
            demand[model] = demand.get(model, 0.0) + rate
        pinned.update(each.room.pinned)
        for holding in each.holdings:
            before = largest.get(holding.model)
            if holding.blocks and (before is None or _count(holding) > _count(before)):
                largest[holding.model] = holding
    return {
        model: ModelFacts(
            model, holding.block_count, holding.nbytes // _count(holding), demand.get(model, 0.0), model in pinned
        )
        for model, holding in largest.items()
    }


def _speeds(said: list[_Said], models: Mapping[ModelId, ModelFacts]) -> Mapping[PeerId, float]:
    """Return how fast members run what they have loaded, relative to the median: bytes of weights per second, of one decode row.

    Who has loaded nothing yet has no speed, and counts as one like most.
    """
    measured = {
        each.peer: max(rates)
        for each in said
        if (
            rates := [
                models[stage.model].block_bytes / stage.block_seconds
                for stage in each.stages
                if stage.model in models and stage.block_seconds > 0
            ]
        )
    }
    if not measured:
        return {}
    median, (least, most) = statistics.median(measured.values()) or 1.0, _SPEEDS
    return {peer: min(most, max(least, rate / median)) for peer, rate in measured.items()}


def _member(said: _Said, models: Mapping[ModelId, ModelFacts], speed: float) -> MemberView:
    parts: dict[Segment, frozenset[int]] = {}
    for holding in said.holdings:
        parts |= _parts(holding, models.get(holding.model))
    held = frozenset(
        segment for segment, blocks in parts.items() if len(blocks) == len(models[segment.model].blocks(segment.index))
    )
    claimed = frozenset(
        segment
        for model, blocks in said.room.fetching
        if model in models
        for segment in models[model].segments()
        if all(block in blocks for block in models[model].blocks(segment.index))
    )
    loose = {segment: blocks for segment, blocks in parts.items() if segment not in held | claimed}
    return MemberView(said.peer, said.room.budget, held | claimed, claimed - held, said.room.uptime, loose, speed)


def _parts(holding: Holding, facts: ModelFacts | None) -> dict[Segment, frozenset[int]]:
    """Return which blocks of which segments a node has, the first and the last block only with what goes with them."""
    if facts is None or facts.block_count != holding.block_count:
        return {}
    lacking = set() if holding.embedding else {0}
    lacking |= set() if holding.head else {facts.block_count - 1}
    found = {
        segment: frozenset(
            block for block in facts.blocks(segment.index) if holding.has(block) and block not in lacking
        )
        for segment in facts.segments()
    }
    return {segment: blocks for segment, blocks in found.items() if blocks}


def _count(holding: Holding) -> int:
    return sum(len(blocks) for blocks in holding.blocks)
