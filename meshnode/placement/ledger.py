"""Which segments this node holds of its own accord, and which models a person removed: kept over restarts.

Only what is in this table may be let go again; what a person asks for, then or later, never is: the catalog knows that.
"""

import attrs

from meshnode.placement.models import Segment
from meshnode.store.protocol import KeyValueStore
from meshnode.store.tables import Table, struct_codec, text_codec
from meshnode.types.ids import ModelId

__all__ = ["PlacementLedger", "open_ledger"]


@attrs.define(eq=False)
class PlacementLedger:
    """One writer: the AutoShardManager."""

    _table: Table[str, tuple[int, ...]]
    _refused: Table[str, bool]

    def own_accord(self) -> frozenset[Segment]:
        """Return what was fetched without a person asking."""
        return frozenset(Segment(ModelId(key), index) for key, indexes in self._table.items() for index in indexes)

    async def add(self, segment: Segment) -> None:
        """Note that a segment is going to be fetched. Raises StoreError."""
        before = self._table.get(segment.model) or ()
        await self._table.put(segment.model, tuple(sorted({*before, segment.index})))

    async def discard(self, segment: Segment) -> None:
        """Note that a segment is gone. Raises StoreError."""
        left = tuple(index for index in self._table.get(segment.model) or () if index != segment.index)
        if left:
            await self._table.put(segment.model, left)
        else:
            await self._table.delete(segment.model)

    def refused(self) -> frozenset[ModelId]:
        """Return what a person removed here."""
        return frozenset(ModelId(key) for key, _ in self._refused.items())

    async def refuse(self, model: ModelId) -> None:
        """Note that a model is not wanted here. Raises StoreError."""
        await self._refused.put(model, True)

    async def welcome(self, model: ModelId) -> None:
        """Note that a person has added a model again. Raises StoreError."""
        await self._refused.delete(model)


async def open_ledger(store: KeyValueStore) -> PlacementLedger:
    """Open it. Raises StoreError."""
    table = Table(store, b"placement/", text_codec(), struct_codec(tuple[int, ...]))
    refused = Table(store, b"placement-refused/", text_codec(), struct_codec(bool))
    for each in (table, refused):
        await each.prepare()
    return PlacementLedger(table, refused)
