"""How far a repository of a hub is to be trusted, before anybody looks at what is in it: pure.

Four steps: seen, wanted by a person, borne out by demand, popular in the mesh. A step is earned by what is the case now, and
lost, one in a week, when nothing bears it out any more; what a person asked for stays wanted.
"""

import enum

import attrs

from meshnode.files.hub_trending import Trending

__all__ = ["MeshFacts", "Standing", "Trust", "TrustRules", "judge", "objections"]

_DAY = 86400.0


class Trust(enum.IntEnum):
    """The steps."""

    SEEN = 0  # it trends on the hub
    WANTED = 1  # a person asked for it on some node
    VERIFIED = 2  # requests bear it out, or many downloads of something that is not new
    POPULAR = 3  # several nodes hold it


@attrs.frozen
class TrustRules:
    """What earns a step."""

    publishers: frozenset[str]  # lower case; nobody else's pass by downloads. None listed: anybody's do, and need more
    min_age: float = _DAY  # seconds: what somebody has just put there may be gone tomorrow, and its downloads bought
    listed_downloads: int = 10_000
    other_downloads: int = 100_000
    requests: float = 3.0  # per hour, of all members
    holders: int = 3
    patience: float = 7 * _DAY  # seconds until a step is lost


@attrs.frozen
class MeshFacts:
    """What the mesh knows of a repository's model."""

    is_asked_for: bool = False
    requests: float = 0.0  # per hour
    holders: int = 0


@attrs.frozen
class Standing:
    """A repository, and how far it has come."""

    found: Trending  # as the hub told last
    trust: Trust
    since: float  # Unix seconds: when something bore out its step last


def judge(old: Standing | None, found: Trending, facts: MeshFacts, rules: TrustRules, now: float) -> Standing:
    """Return where a repository stands now. `now`: Unix seconds; a clock that was set back costs it nothing."""
    earned = _earned(found, facts, rules, now)
    if old is None or earned >= old.trust:
        return Standing(found, earned, now)
    if now - old.since < rules.patience:
        return Standing(found, old.trust, min(old.since, now))
    return Standing(found, max(earned, Trust(old.trust - 1)), now)


def _earned(found: Trending, facts: MeshFacts, rules: TrustRules, now: float) -> Trust:
    if facts.holders >= rules.holders:
        return Trust.POPULAR
    if facts.requests >= rules.requests or not objections(found, rules, now):
        return Trust.VERIFIED
    return Trust.WANTED if facts.is_asked_for else Trust.SEEN


def objections(found: Trending, rules: TrustRules, now: float) -> tuple[str, ...]:
    """Say why the hub's figures alone do not speak for a repository; nothing if they do."""
    said = []
    needed = rules.listed_downloads if rules.publishers else rules.other_downloads
    if rules.publishers and found.publisher.lower() not in rules.publishers:
        said.append(f"{found.publisher} is not on the list hub.publishers")
    if found.downloads < needed:
        said.append(f"{found.downloads} downloads, and {needed} are trusted")
    if now - found.created < rules.min_age:
        said.append(f"it is younger than {rules.min_age / 3600:.0f} hours")
    return tuple(said)
