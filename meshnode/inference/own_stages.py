"""What this node can run itself, as the planner and other nodes see it."""

import attrs

from meshnode.flow.latest import Latest
from meshnode.inference.models import LoadedModel
from meshnode.inference.route_finder import OwnStage
from meshnode.types.ids import ModelId

__all__ = ["own_stages"]


def own_stages(loaded: Latest[dict[ModelId, LoadedModel]]) -> tuple[OwnStage, ...]:
    """Return the loaded stages whose worker is there.

    Our own sessions wait for each other's memory, so what is free now is no reason to go elsewhere: all of the context is
    offered to ourselves.
    """
    found = []
    for model in loaded.value.values():
        offer = model.offer()
        if offer is not None:
            offer = attrs.evolve(offer, free_tokens=offer.context_length)
            found.append(OwnStage(offer, model.executor.incarnation, model.sessions))
    return tuple(found)
