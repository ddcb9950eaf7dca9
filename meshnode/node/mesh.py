"""How the router meets other nodes, with a network and without one."""

import attrs

from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.router import MeshAccess
from meshnode.network.loopback import LoopbackLink, LoopbackLinks
from meshnode.network.stage_links import Received
from meshnode.types.ids import PeerId
from meshnode.types.peers import Offering, PeerInfo

__all__ = ["NoPeers", "solitary_mesh"]


@attrs.frozen(eq=False)
class NoPeers:
    """The view of a node that knows nobody."""

    changed: Latest[int] = attrs.field(factory=lambda: Latest(0))

    def peers(self) -> tuple[PeerInfo, ...]:
        """Return nobody."""
        return ()


def solitary_mesh(own: PeerId, received: Mailbox[Received, None]) -> MeshAccess:
    """Return the mesh of a node without a network: no peers, and a loop to itself."""
    return MeshAccess(own, NoPeers(), LoopbackLinks(LoopbackLink(own, received)), received, Latest(Offering()))
