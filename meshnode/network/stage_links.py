"""What a stage link is, whatever carries it: a TLS connection, a relayed stream, or a loop to ourselves."""

from typing import Protocol

from meshnode.network.ports import Inbound, MessageLink
from meshnode.types.ids import PeerId
from meshnode.types.rings import RingPlace
from meshnode.wire.control_messages import ControlMessage
from meshnode.wire.stage_messages import StageMessage

__all__ = ["AnyReceived", "ControlReceived", "Received", "StageLink", "StageLinks"]

StageLink = MessageLink[StageMessage]
Received = Inbound[StageMessage]
ControlReceived = Inbound[ControlMessage]
AnyReceived = Received | ControlReceived


class StageLinks(Protocol):
    """How to reach peers with stage messages."""

    async def to(self, peer: PeerId) -> StageLink:
        """Return the live link to a peer, opening one if there is none. Raises PeerUnreachable."""
        ...

    def existing(self, peer: PeerId) -> StageLink | None:
        """Return the live link to a peer, if there is one."""
        ...

    def ring_place(self) -> RingPlace | None:
        """Return where workers of this node can be found by those of others; None while they cannot."""
        ...

    def activations_pass(self) -> None:
        """Note that activations pass this node, which bulk gives way to."""
        ...
