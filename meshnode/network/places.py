"""Places at relays: when this node takes one so that others reach it through a third node, and where.

The sign is not a guess about routers in between. It is that a node we hear of by gossip has no direct link with us for a
while, though each of us dials the other: then one of the two cannot be reached, and both take places, for it may be either.
"""

from collections.abc import Sequence

import attrs
import structlog
import trio

from meshnode.errors import PeerError
from meshnode.flow.changes import Changes
from meshnode.network.addresses import direct_only
from meshnode.network.dialing import Dialling
from meshnode.network.host_ports import Host
from meshnode.network.peers import PeerView
from meshnode.types.ids import PeerId, short
from meshnode.types.peers import Liveness, PeerInfo

__all__ = ["Places"]

_PLACES = 2  # relays, so that the loss of one is not the loss of us
_PATIENCE = 3.0  # seconds that a node may be known without a direct link
_LOOK_EVERY = 1.0

_log = structlog.get_logger(__name__)


@attrs.define(eq=False)
class Places:
    """The relays of one incarnation of the network. A place is kept as long as the connection to its relay."""

    _host: Host
    _peers: PeerView
    _dialling: Dialling[PeerId] = attrs.field(factory=Dialling, init=False)  # of relays that would not have us
    _apart: dict[PeerId, float] = attrs.field(factory=dict, init=False)  # not linked directly: since when

    async def run(self) -> None:
        """Take places as they are needed, until cancelled."""
        changes = Changes((self._peers.changed,))
        while True:
            await trio.sleep(_LOOK_EVERY)
            now = trio.current_time()
            if changes.there_are():
                apart = [info.peer for info in self._peers.peers() if _is_apart(info)]
                self._apart = {peer: self._apart.get(peer, now) for peer in apart}
            if all(now - since < _PATIENCE for since in self._apart.values()):
                continue
            held = self._host.relays()
            suitable = [info.peer for info in _suitable(self._peers.peers()) if info.peer not in held]
            for peer in self._dialling.due(suitable)[: max(0, _PLACES - len(held))]:
                await self._reserve(peer)

    async def _reserve(self, peer: PeerId) -> None:
        try:
            address = await self._host.reserve_relay(peer)
        except PeerError as error:
            self._dialling.failed(peer)
            _log.debug("no place at this peer", peer=short(peer), why=str(error))
        else:
            _log.info("reached through a relay", relay=short(peer), address=address)


def _is_apart(info: PeerInfo) -> bool:
    """Whether a peer is there by all that is known, and not linked directly."""
    return info.offer is not None and info.liveness is not Liveness.DEAD and (info.relayed or not info.connected)


def _suitable(peers: Sequence[PeerInfo]) -> list[PeerInfo]:
    """Return those that may carry us, the nearest first: linked directly, and reached somewhere themselves."""
    direct = [info for info in peers if info.connected and not info.relayed and direct_only(info.addresses)]
    return sorted(direct, key=lambda info: (info.round_trip is None, info.round_trip or 0.0))
