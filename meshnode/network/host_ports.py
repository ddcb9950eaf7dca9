"""What the NetworkManager needs of the libp2p host and of the data plane; in simulations both are made of memory."""

from collections.abc import Sequence
from typing import Protocol

import trio

from meshnode.network.ports import PeerStream
from meshnode.network.stage_links import StageLinks
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Ticket, TicketRequest

__all__ = ["Host", "StagePlane"]


class Host(Protocol):
    """Authenticated connections to peers, and streams on them."""

    def listen_addresses(self) -> tuple[str, ...]:
        """Return our whole multiaddrs, with /p2p/."""
        ...

    async def connect(self, addresses: Sequence[str]) -> PeerId:
        """Connect to the peer that the addresses name. Raises PeerUnreachable, PeerMisbehaved."""
        ...

    async def open_stream(self, peer: PeerId, protocol: str) -> PeerStream:
        """Open a stream to a connected peer. Raises PeerUnreachable."""
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close the connection to a peer."""
        ...


class StagePlane(StageLinks, Protocol):
    """Stage links to other nodes."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then every stage link closes."""
        ...

    async def accept_stream(self, stream: PeerStream) -> None:
        """Serve a stage link over a stream of the host, to its end."""
        ...

    def grant(self, peer: PeerId, request: TicketRequest) -> Ticket:
        """Give a peer leave to open a direct link. Raises PeerRefused."""
        ...
