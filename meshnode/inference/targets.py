"""Which model a request is for: one that is here, or one that a name means among those of peers."""

from collections.abc import Iterable, Sequence

import attrs

from meshnode.errors import RequestError, UnknownModel
from meshnode.inference.route_finder import not_loaded, once_loaded
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelManifest
from meshnode.types.model_names import AUTO, ModelNames, matching, suited
from meshnode.types.peers import PeerInfo, StageOffer

__all__ = ["Target", "model_here", "model_of_peers"]


@attrs.frozen
class Target:
    """The model a request is for; `manifest` only if this node has it."""

    id: ModelId
    name: str
    block_count: int
    context_length: int  # 0 until somebody has loaded it and says how long it is: whoever coordinates has it measured
    manifest: ModelManifest | None = None


def model_here(manifest: ModelManifest) -> Target:
    """Return a model that this node has, or a part of."""
    config = manifest.config
    return Target(manifest.id, manifest.name, config.block_count, config.context_length, manifest)


def model_of_peers(name: str, peers: Iterable[PeerInfo], unknown: RequestError, *, embeds: bool) -> Target:
    """Find what `name` means among what peers offer, or have on disk and are loading, anew after a crash for example.

    What is offered goes before what is not, except that a whole name goes before the beginning of one. Raises UnknownModel,
    which begins with `unknown`.
    """
    offers = [peer.offer for peer in peers if peer.offer is not None]
    loaded = [stage for offer in offers for stage in offer.stages]
    coming = [once_loaded(holding, blocks, tokens=0) for offer in offers for holding, blocks in not_loaded(offer)]
    either = [*loaded, *coming]
    if name == AUTO:
        found = suited(loaded, _writes, embeds=embeds) or suited(coming, _writes, embeds=embeds)
    else:
        found = _meant(name, loaded, either)
    if not found:
        elsewhere = ", ".join(sorted({stage.name for stage in either}))
        also = f"; models of peers: {elsewhere}" if elsewhere else ""
        raise UnknownModel(f"{unknown}{also}", param="model")
    models = [stage.model for stage in found]

    def preference(model: ModelId) -> tuple[int, int, ModelId]:
        """Names do not identify weights: of several models under one, take that which most nodes mean by it."""
        covered, holders = _covered(found, model), models.count(model)
        return (covered, holders, model) if name == AUTO else (holders, covered, model)

    best = max(models, key=preference)
    stage = next(stage for stage in found if stage.model == best)
    return Target(stage.model, stage.name, stage.block_count, stage.context_length)


def _meant(name: str, loaded: Sequence[StageOffer], either: Sequence[StageOffer]) -> list[StageOffer]:
    """Return the stages that `name` means; none where it may mean several models, being the beginning of their names."""
    found: list[StageOffer] = []
    for stages in (loaded, either):
        meant = matching(name, {_names(stage) for stage in stages})
        is_exact = bool(meant) and meant[0].rank(name) is not None
        these = [stage for stage in stages if _names(stage) in meant]
        if is_exact:
            return these
        if not found and len({stage.name for stage in these}) == 1:
            found = these
    return found


def _names(stage: StageOffer) -> ModelNames:
    return ModelNames(stage.model, stage.name, stage.aliases)


def _writes(stage: StageOffer) -> bool:
    return stage.causal


def _covered(stages: Sequence[StageOffer], model: ModelId) -> int:
    """Count the blocks of a model that there are."""
    return len({block for stage in stages if stage.model == model for block in stage.blocks})
