"""A node without a network: it knows nobody, and reaches itself."""

import attrs

from meshnode.errors import RequestError
from meshnode.flow.latest import Latest
from meshnode.flow.mailbox import Mailbox
from meshnode.inference.router import MeshAccess
from meshnode.network.loopback import LoopbackLink, LoopbackLinks
from meshnode.network.stage_links import Received
from meshnode.node.channels import Channels
from meshnode.types.ids import PeerId
from meshnode.types.peers import Offering, PeerInfo

__all__ = ["NoMesh", "NoPeers", "solitary_mesh"]

_WHY = "this node has no network: it is offline, or network.enabled is false"


@attrs.frozen(eq=False)
class NoPeers:
    """The view of a node that knows nobody."""

    changed: Latest[int] = attrs.field(factory=lambda: Latest(0))

    def peers(self) -> tuple[PeerInfo, ...]:
        """Return nobody."""
        return ()


def solitary_mesh(own: PeerId, received: Mailbox[Received, None]) -> MeshAccess:
    """Return what a router needs that has no peers."""
    return MeshAccess(own, NoPeers(), LoopbackLinks(LoopbackLink(own, received)), received, Latest(Offering()))


@attrs.frozen(eq=False)
class NoMesh:
    """Stands where the mesh would be."""

    peer: PeerId
    channels: Channels

    @property
    def view(self) -> NoPeers:
        """Nobody."""
        return NoPeers()

    def access(self) -> MeshAccess:
        """Return what the router needs."""
        return solitary_mesh(self.peer, self.channels.stage_messages)

    def holders(self) -> None:
        """Return that nobody else holds anything."""

    def builders(self) -> None:
        """Return that there are no subsystems of a network."""

    def peers(self) -> list[dict[str, object]]:
        """Return nobody."""
        return []

    def listen_addresses(self) -> tuple[str, ...]:
        """Return none."""
        return ()

    def invitation(self) -> str:
        """Raise RequestError."""
        raise RequestError(_WHY)

    async def join(self, addresses: tuple[str, ...]) -> str:
        """Raise RequestError."""
        raise RequestError(f"{_WHY}; {', '.join(addresses)} cannot be reached")
