"""What of the hub is worth having: repositories that the HfWatcher has seen, as rows of the wishlist."""

from collections.abc import Iterable, Mapping, Sequence

from meshnode.files.catalog import ModelCatalog
from meshnode.files.hub_reference import HUB_PREFIX
from meshnode.files.hub_trust import MeshFacts, Standing, Trust, TrustRules, objections
from meshnode.placement.wishlist import Wish
from meshnode.types.manifest import ModelManifest
from meshnode.types.peers import Liveness, PeerInfo, Room

__all__ = ["candidates", "facts_of", "repository_of"]

_STEPS = {
    Trust.SEEN: "it trends on the hub",
    Trust.WANTED: "a person asked for it",
    Trust.VERIFIED: "its downloads or requests speak for it",
    Trust.POPULAR: "several nodes hold it",
}


def repository_of(manifest: ModelManifest) -> str | None:
    """Return which repository of a hub a model came from, None if from none."""
    repository, at, _ = (manifest.source or "").partition("@")
    return repository if at and repository.count("/") == 1 else None


def facts_of(catalog: ModelCatalog, peers: Iterable[PeerInfo], room: Room | None) -> Mapping[str, MeshFacts]:
    """Return what the mesh knows of the models of this node that came from a hub, by repository."""
    offers = [peer.offer for peer in peers if peer.offer is not None and peer.liveness is not Liveness.DEAD]
    rooms = [each for each in (room, *(offer.room for offer in offers)) if each is not None]
    facts = {}
    for manifest in catalog.manifests():
        if (repository := repository_of(manifest)) is None:
            continue
        holders = sum(any(holding.model == manifest.id for holding in offer.holdings) for offer in offers)
        facts[repository] = MeshFacts(
            is_asked_for=any(manifest.id in each.pinned for each in rooms),
            requests=sum(dict(each.demand).get(manifest.id, 0.0) for each in rooms),
            holders=holders + bool(catalog.held(manifest.id)),
        )
    return facts


def candidates(
    seen: Sequence[Standing], manifests: Iterable[ModelManifest], rules: TrustRules, now: float
) -> tuple[Wish, ...]:
    """Return the repositories whose models are not here. Those that nothing speaks for are blocked, and it is said why."""
    here = {repository_of(manifest) for manifest in manifests}
    return tuple(_wish(each, rules, now) for each in seen if each.found.repository not in here)


def _wish(standing: Standing, rules: TrustRules, now: float) -> Wish:
    found, is_blocked = standing.found, standing.trust is Trust.SEEN
    reasons = objections(found, rules, now) if is_blocked else (_STEPS[standing.trust],)
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
