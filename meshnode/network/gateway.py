"""The links of this node as other subsystems have them: they outlive the network's restarts, and lead to ourselves too."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from meshnode.errors import PeerUnreachable
from meshnode.network.bulk_lines import BulkLine
from meshnode.network.host_ports import StagePlane
from meshnode.network.loopback import LoopbackLink
from meshnode.network.ports import MessageLink
from meshnode.network.stage_links import StageLink
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId
from meshnode.types.rings import RingPlace
from meshnode.wire.control_messages import ControlMessage, Kept, KeptWanted

__all__ = ["StageGateway"]

_PATIENCE = 2.0  # seconds for a network that is being restarted
_ANSWER = 10.0  # seconds for a short question


@attrs.define(eq=False)
class StageGateway:
    """Hands on to the data plane of the network's present incarnation."""

    loopback: LoopbackLink
    _current: StagePlane | None = attrs.field(default=None, init=False)
    _reach: Callable[[PeerId], Awaitable[MessageLink[ControlMessage]]] | None = attrs.field(default=None, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def connect(
        self,
        links: StagePlane | None,
        reach: Callable[[PeerId], Awaitable[MessageLink[ControlMessage]]] | None = None,
    ) -> None:
        """Set, or take away, what links to other nodes come from, and what gives the control link to a peer."""
        self._current, self._reach = links, reach
        self._changed.set()
        self._changed = trio.Event()

    async def to(self, peer: PeerId) -> StageLink:
        """Return a link to a peer. Raises PeerUnreachable."""
        if peer == self.loopback.peer:
            await trio.lowlevel.checkpoint()
            return self.loopback
        return await (await self._up(peer)).to(peer)

    @asynccontextmanager
    async def fetching_from(self, peer: PeerId) -> AsyncIterator[BulkLine]:
        """Connect to a peer for shards. Raises PeerUnreachable and PeerRefused."""
        async with (await self._up(peer)).fetching_from(peer) as line:
            yield line

    async def keeps(self, peer: PeerId, model: ModelId, blocks: BlockRange) -> bool:
        """Ask a peer whether it holds blocks of a model and is not about to let them go. Raises PeerError leafs, Overloaded."""
        if self._reach is None:
            raise PeerUnreachable(f"{peer} cannot be reached: the network of this node is down")
        link = await self._reach(peer)
        answer = await link.ask(KeptWanted(model, blocks.start, blocks.end), timeout=_ANSWER)
        return isinstance(answer.message, Kept) and answer.message.all

    def existing(self, peer: PeerId) -> StageLink | None:
        """Return the live link to a peer, if there is one."""
        if peer == self.loopback.peer:
            return self.loopback
        return None if self._current is None else self._current.existing(peer)

    def ring_place(self) -> RingPlace | None:
        """Return where workers of this node can be found; None while its network is down."""
        return None if self._current is None else self._current.ring_place()

    def activations_pass(self) -> None:
        """Note that activations pass."""
        if self._current is not None:
            self._current.activations_pass()

    async def _up(self, peer: PeerId) -> StagePlane:
        with trio.move_on_after(_PATIENCE):
            while self._current is None:
                await self._changed.wait()
        if self._current is None:
            raise PeerUnreachable(f"{peer} cannot be reached: the network of this node is down")
        return self._current
