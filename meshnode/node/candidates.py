"""What of the hub is worth having: repositories that the HfWatcher has seen, as rows of the wishlist."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from meshnode.files.catalog import ModelCatalog
from meshnode.files.hub_reference import HUB_PREFIX
from meshnode.files.hub_trust import MeshFacts, Standing, Trust, TrustRules, objections
from meshnode.placement.wishlist import Wish
from meshnode.types.ids import ModelId
from meshnode.types.manifest import ModelManifest
from meshnode.types.peers import Liveness, PeerInfo, Room

__all__ = ["candidates", "facts_of"]

_STEPS = {
    Trust.SEEN: "nothing speaks against it any more; the next look at the hub counts",
    Trust.WANTED: "a person asked for it",
    Trust.VERIFIED: "its downloads or requests speak for it",
    Trust.POPULAR: "several nodes hold it",
}


def facts_of(catalog: ModelCatalog, peers: Iterable[PeerInfo], room: Room | None) -> Mapping[str, MeshFacts]:
    """Return what the mesh knows of models that came from a hub, here or elsewhere, by repository."""
    offers = [peer.offer for peer in peers if peer.offer is not None and peer.liveness is not Liveness.DEAD]
    rooms = [each for each in (room, *(offer.room for offer in offers)) if each is not None]
    models: dict[str, set[ModelId]] = {}
    holders: Counter[str] = Counter()
    for manifest in catalog.manifests():
        models.setdefault(manifest.repository, set()).add(manifest.id)
    holders.update({each.repository for each in catalog.manifests() if catalog.held(each.id)})
    for offer in offers:
        for holding in offer.holdings:
            models.setdefault(holding.repository, set()).add(holding.model)
    for offer in offers:  # one who says nothing of where a model came from holds it all the same
        held = {holding.model for holding in offer.holdings}
        holders.update(repository for repository, known in models.items() if known & held)
    return {
        repository: MeshFacts(
            is_asked_for=any(known & set(each.pinned) for each in rooms),
            requests=sum(rate for each in rooms for model, rate in each.demand if model in known),
            holders=holders[repository],
        )
        for repository, known in models.items()
        if repository
    }


def candidates(
    seen: Sequence[Standing], manifests: Iterable[ModelManifest], rules: TrustRules, now: float
) -> tuple[Wish, ...]:
    """Return the repositories whose models are not here. Those that nothing speaks for are blocked, and it is said why."""
    here = {manifest.repository for manifest in manifests}
    return tuple(_wish(each, rules, now) for each in seen if each.found.repository not in here)


def _wish(standing: Standing, rules: TrustRules, now: float) -> Wish:
    found, is_blocked = standing.found, standing.trust is Trust.SEEN
    reasons = (is_blocked and objections(found, rules, now)) or (_STEPS[standing.trust],)
    return Wish(
        model=None,
        name=found.repository,
        status="blocked" if is_blocked else "candidate",
        reasons=reasons,
        copies=0,
        target=0,
        demand=0.0,
        held_percent=0,
        reference=f"{HUB_PREFIX}{found.repository}",
        trust=standing.trust.name.lower(),
        downloads=found.downloads,
        likes=found.likes,
    )
