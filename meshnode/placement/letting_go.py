"""Letting a part go: only while as many others hold it as there have to be, by their own word and not by gossip's.

Gossip may be minutes old: two may each rely on the copy of the other, or both on one that is gone. So whoever is about to let a
part go first says so to all who ask, then asks the others until enough of them have said that they hold it and are not about to
let it go. Of all who let copies go at about the same time, one began last; who vouched for it had not begun: these copies stay.
"""

from collections.abc import Callable

import attrs
import structlog

from meshnode.errors import MeshnodeError
from meshnode.flow.latest import Latest
from meshnode.placement.models import Segment
from meshnode.placement.ports import OtherHolders, Shards
from meshnode.placement.ranking import luck
from meshnode.placement.view import MeshState
from meshnode.types.blocks import BlockRange
from meshnode.types.ids import ModelId, PeerId, short

__all__ = ["Departure", "LettingGo"]

_log = structlog.get_logger(__name__)

Departure = tuple[ModelId, BlockRange]
"""What a node is about to let go."""


@attrs.define(eq=False)
class LettingGo:
    """What one look at the mesh lets go, one part after the other."""

    _state: MeshState
    _own: PeerId
    _shards: Shards
    _others: OtherHolders
    _leaving: Latest[Departure | None]  # what this node does not vouch for; written here alone
    _silent: set[PeerId] = attrs.field(factory=set, init=False)  # who could not be asked, and is not asked again

    async def let_go(self, segment: Segment, may_go: Callable[[], bool]) -> bool:
        """Let a segment go if others keep it and it still `may_go` then; return whether it has gone.

        Cancellation leaves it said that it goes: it may be half gone, until the next look sees what is here.
        """
        numbers = self._state.models[segment.model].blocks(segment.index)
        blocks = BlockRange(numbers.start, numbers.stop)
        self._leaving.set((segment.model, blocks))
        has_gone = await self._is_kept(segment, blocks) and may_go() and await self._drop(segment.model, blocks)
        self._leaving.set(None)
        return has_gone

    async def _is_kept(self, segment: Segment, blocks: BlockRange) -> bool:
        lacking = self._state.least(segment.model)
        others = {*self._state.arrived(segment)} - {self._own} - self._silent
        # The one who stays comes first.
        for peer in sorted(others, key=lambda each: -luck(Segment(segment.model, -1), each)):
            try:
                lacking -= await self._others.keeps(peer, segment.model, blocks)
            except MeshnodeError as error:
                self._silent.add(peer)
                _log.debug("holder not asked", peer=short(peer), error=str(error))
            if lacking <= 0:
                return True
        _log.debug("part kept: too few others say that they hold it", model=short(segment.model), blocks=str(blocks))
        return False

    async def _drop(self, model: ModelId, blocks: BlockRange) -> bool:
        try:
            await self._shards.drop(model, blocks)
        except MeshnodeError as error:
            _log.warning("part not dropped", model=short(model), blocks=str(blocks), error=str(error))
            return False
        _log.info("part dropped", model=short(model), blocks=str(blocks))
        return True
