"""The one place that says which peers may see a request: its text, its tokens, or activations made from them.

A peer that runs a stage in the middle sees no text and no tokens, but what a model reads can be inferred from activations
to some degree; so the rule is the same for every stage.
"""

import enum

from meshnode.types.peers import PeerInfo

__all__ = ["Privacy", "may_see"]


class Privacy(enum.Enum):
    """How far a request may travel."""

    ANYONE = "anyone"
    POOL_AND_LAN = "pool_and_lan"  # members of a pool of ours, and peers reached directly at a private address
    THIS_NODE_ONLY = "this_node_only"


def may_see(peer: PeerInfo, privacy: Privacy) -> bool:
    """Whether `peer`, another node, may take part in a request."""
    if privacy is Privacy.ANYONE:
        return True
    return privacy is Privacy.POOL_AND_LAN and (peer.pool or peer.lan)
