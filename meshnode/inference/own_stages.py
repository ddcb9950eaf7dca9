"""What this node can run itself, as the planner and other nodes see it."""

import attrs

from meshnode.flow.latest import Latest
from meshnode.inference.models import LoadedModel
from meshnode.inference.route_finder import OwnStage
from meshnode.types.ids import ModelId

__all__ = ["own_stages", "own_stages_for_us"]


def own_stages(loaded: Latest[dict[ModelId, LoadedModel]]) -> tuple[OwnStage, ...]:
    """Return the loaded stages whose worker is there, as they can be offered to others."""
    found = []
    for model in loaded.value.values():
        offer = model.offer()
        if offer is not None:
            found.append(OwnStage(offer, model.executor.incarnation, model.sessions))
    return tuple(found)


def own_stages_for_us(loaded: Latest[dict[ModelId, LoadedModel]]) -> tuple[OwnStage, ...]:
    """Return them for sessions of our own, which wait for each other's memory: lack of it now is no reason to go elsewhere."""
    stages = own_stages(loaded)
    return tuple(
        attrs.evolve(each, offer=attrs.evolve(each.offer, free_tokens=each.offer.context_length)) for each in stages
    )
