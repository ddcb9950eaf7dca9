"""The stage links as the router has them: they outlive the network's restarts, and lead to ourselves at any time."""

import attrs
import trio

from meshnode.errors import PeerUnreachable
from meshnode.network.loopback import LoopbackLink
from meshnode.network.stage_links import StageLink, StageLinks
from meshnode.types.ids import PeerId

__all__ = ["StageGateway"]

_PATIENCE = 2.0  # seconds for a network that is being restarted


@attrs.define(eq=False)
class StageGateway:
    """Hands on to the data plane of the network's present incarnation."""

    loopback: LoopbackLink
    _current: StageLinks | None = attrs.field(default=None, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def connect(self, links: StageLinks | None) -> None:
        """Set, or take away, what links to other nodes come from."""
        self._current = links
        self._changed.set()
        self._changed = trio.Event()

    async def to(self, peer: PeerId) -> StageLink:
        """Return a link to a peer. Raises PeerUnreachable."""
        if peer == self.loopback.peer:
            await trio.lowlevel.checkpoint()
            return self.loopback
        with trio.move_on_after(_PATIENCE):
            while self._current is None:
                await self._changed.wait()
        if self._current is None:
            raise PeerUnreachable(f"{peer} cannot be reached: the network of this node is down")
        return await self._current.to(peer)

    def existing(self, peer: PeerId) -> StageLink | None:
        """Return the live link to a peer, if there is one."""
        if peer == self.loopback.peer:
            return self.loopback
        return None if self._current is None else self._current.existing(peer)
