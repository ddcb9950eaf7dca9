"""Which versions of the protocol this program speaks, which optional parts, and how two programs find what both speak."""

import enum
import hashlib
import hmac

import attrs

from meshnode.errors import PeerRefused, VersionMismatch
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Hello

__all__ = ["CONTROL_PROTOCOL", "NEWEST", "OLDEST", "OURS", "STAGE_PROTOCOL", "Feature", "Terms", "agree",
           "network_proof"]  # fmt: skip

CONTROL_PROTOCOL = "/meshnode/control/1"
STAGE_PROTOCOL = "/meshnode/stage/1"
"""Names of the libp2p streams. Their number changes when not even Hello can be understood any more."""

OLDEST = 1
NEWEST = 1
"""Versions of the protocol that this program speaks."""


class Feature(enum.IntFlag):
    """Optional parts. A message of one is sent only where both sides have its bit."""

    DATA_PLANE = 1  # gives tickets for direct links
    DELEGATION = 2  # runs requests for nodes that cannot coordinate them
    INTRODUCTIONS = 4  # names the peers it is connected to
    NAMED_PEERS = 8  # keeps a request that it coordinates among the peers that its asker names
    KEPT = 16  # says what it holds and is not about to let go
    RINGS = 32  # has its workers hand tokens on to those of other nodes


OURS: Feature = (
    Feature.DATA_PLANE | Feature.DELEGATION | Feature.INTRODUCTIONS | Feature.NAMED_PEERS | Feature.KEPT | Feature.RINGS
)


@attrs.frozen
class Terms:
    """What two nodes have agreed on."""

    version: int
    features: Feature  # that both have
    is_newer: bool  # the peer has features we have never heard of, so it may send messages we do not know
    program: str  # its version, for people
    skew: float  # seconds its clock is ahead of ours, give or take the round trip
    for_route: bool = False  # one of us wants to run a session over the link


def agree(ours: Hello, theirs: Hello, peer: PeerId, network: bytes) -> Terms:
    """Return what we and `peer` have in common; `network` is what its proof has to be.

    Raises VersionMismatch, naming both sides' versions, and PeerRefused when it is of another network.
    """
    version = min(ours.newest, theirs.newest)
    if version < max(ours.oldest, theirs.oldest):
        older = "this node" if ours.newest < theirs.oldest else "that node"
        raise VersionMismatch(
            f"{peer} runs meshnode {theirs.version}, which speaks protocol {_span(theirs)}; "
            f"this node runs {ours.version}, which speaks {_span(ours)}. Update {older}"
        )
    if not hmac.compare_digest(theirs.network, network):
        raise PeerRefused(f"{peer} is of another network; check network_id on both nodes")
    return Terms(
        version=version,
        features=Feature(ours.features & theirs.features & int(OURS)),
        is_newer=bool(theirs.features & ~int(OURS)),
        program=theirs.version,
        skew=theirs.clock - ours.clock,
        for_route=ours.for_route or theirs.for_route,
    )


def network_proof(network_id: str, sender: PeerId) -> bytes:
    """Return 32 bytes which show that `sender` knows the id of its network; of no use to anybody else."""
    return hmac.digest(network_id.encode(), b"meshnode:hello\0" + sender.encode(), hashlib.sha256)


def _span(hello: Hello) -> str:
    return str(hello.newest) if hello.oldest == hello.newest else f"{hello.oldest} to {hello.newest}"
