"""What the NetworkManager needs of the libp2p host and of the data plane; in simulations both are made of memory."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from meshnode.flow.latest import Latest
from meshnode.network.bulk_lines import BulkLine
from meshnode.network.ports import PeerStream
from meshnode.network.stage_links import StageLinks
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Ticket, TicketRequest

__all__ = ["Discovery", "Host", "StagePlane"]


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

    def vouch(self, peer: PeerId) -> None:
        """Let a peer stay that has shown that it belongs to our network."""
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close the connection to a peer."""
        ...

    def members(self) -> Collection[PeerId]:
        """Return whom we are connected to and who is vouched for."""
        ...

    def relays(self) -> Collection[PeerId]:
        """Return the peers that we can be reached through now."""
        ...

    async def reserve_relay(self, peer: PeerId) -> str:
        """Be reachable through a connected peer; return our address there. Raises PeerRefused, PeerUnreachable."""
        ...

    async def provide(self, key: bytes) -> None:
        """Let others of our network find us by `key`, until `withdraw` or the end of this host."""
        ...

    def withdraw(self, key: bytes) -> None:
        """Stop providing `key`."""
        ...

    async def find_providers(self, key: bytes, limit: int = 20) -> tuple[tuple[PeerId, tuple[str, ...]], ...]:
        """Return others that said they provide `key`, with their addresses. Hints: any may be wrong."""
        ...


class Discovery(Protocol):
    """A way to find nodes that nobody has named."""

    async def run(self, listening: Latest[tuple[str, ...]], found: Callable[[PeerId, Sequence[str]], None]) -> None:
        """Be found where we listen, and tell who is found, until cancelled."""
        ...


class StagePlane(StageLinks, Protocol):
    """Stage links to other nodes."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then every stage link closes."""
        ...

    async def accept_stream(self, stream: PeerStream) -> None:
        """Serve a stage link over a stream of the host, to its end."""
        ...

    def found_direct_way(self, peer: PeerId) -> None:
        """Try at once to put direct links in the place of relayed ones."""
        ...

    def part_with(self, peer: PeerId) -> None:
        """End all links with a peer that has been banned, and take back its tickets."""
        ...

    def fetching_from(self, peer: PeerId) -> AbstractAsyncContextManager[BulkLine]:
        """Connect to a peer for shards. Raises PeerUnreachable and PeerRefused on entry."""
        ...

    def grant(self, peer: PeerId, request: TicketRequest) -> Ticket:
        """Give a peer leave to open a direct link. Raises PeerRefused."""
        ...
