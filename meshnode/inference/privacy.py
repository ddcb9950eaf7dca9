"""The one place that says which peers may see a request: its text, its tokens, or activations made from them.

A peer that runs a stage in the middle sees no text and no tokens, but what a model reads can be inferred from activations
to some degree; so the rule is the same for every stage.
"""

import enum

from meshnode.types.ids import PeerId
from meshnode.types.peers import PeerInfo

__all__ = ["Privacy", "may_see", "privacy_of", "stricter"]


class Privacy(enum.Enum):
    """How far a request may travel."""

    ANYONE = "anyone"
    POOL_AND_LAN = "pool_and_lan"  # peers reached directly at a private address, and pools, once there are any
    THIS_NODE_ONLY = "this_node_only"


_STRICTEST_FIRST = (Privacy.THIS_NODE_ONLY, Privacy.POOL_AND_LAN, Privacy.ANYONE)


def stricter(one: Privacy, other: Privacy) -> Privacy:
    """Return the rule that allows less: on a node that works for another, both of their rules hold."""
    return min(one, other, key=_STRICTEST_FIRST.index)


def privacy_of(name: str) -> Privacy:
    """Return the rule of that name. One that this version does not know may be stricter than all it knows."""
    try:
        return Privacy(name)
    except ValueError:
        return Privacy.THIS_NODE_ONLY


def may_see(peer: PeerInfo, privacy: Privacy, named: frozenset[PeerId] | None = None) -> bool:
    """Whether `peer`, another node, may take part in a request; `named` are those its askers allow, None if they named none."""
    if named is not None and peer.peer not in named:
        return False
    if privacy is Privacy.ANYONE:
        return True
    return privacy is Privacy.POOL_AND_LAN and (peer.pool or peer.lan)
