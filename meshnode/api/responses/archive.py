"""Answers that are kept: on disk, for thirty days, and not without end.

An answer keeps what it was made from. While the answers before it are kept it only names the last of them; when one of those is
forgotten, whoever followed it takes its items over. So a conversation goes on from any answer there is, and no item is kept
longer than the last answer that was made from it.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import attrs
import msgspec
import trio

from meshnode.errors import UnknownResponse
from meshnode.store.protocol import KeyValueStore
from meshnode.store.tables import Table, struct_codec, text_codec

__all__ = ["ResponseArchive", "StoredResponse", "open_archive"]

_PREFIX = b"responses/"
KEPT_FOR = 30 * 86400.0  # seconds, as OpenAI does
_MAX_ROWS = 10_000
_MAX_BYTES = 512 << 20


@attrs.frozen
class StoredResponse:
    """One answer. JSON as it was sent."""

    created: float  # Unix seconds
    previous: str | None
    input: tuple[dict[str, object], ...]  # of this turn
    response: dict[str, object]  # the whole reply
    size: int = 0  # bytes of the row

    @property
    def output(self) -> list[dict[str, object]]:
        """The items of the answer."""
        return cast("list[dict[str, object]]", self.response["output"])

    @property
    def named_input(self) -> list[dict[str, object]]:
        """The items that it was made from, each with an id."""
        prefix = str(self.response["id"]).partition("_")[2]
        return [{"id": f"item_{prefix}_{index}", **item} for index, item in enumerate(self.input)]

    @property
    def turn(self) -> list[dict[str, object]]:
        """What the turn adds to the conversation."""
        return [*self.named_input, *self.output]


@attrs.frozen
class _Head:
    """What is known of a row without reading it."""

    created: float
    previous: str | None
    size: int = 0


@attrs.define(eq=False)
class ResponseArchive:
    """Rows by id. A cancellation comes before a write or after it."""

    _store: KeyValueStore
    _table: Table[str, StoredResponse]
    _clock: Callable[[], float]
    _heads: dict[str, _Head]  # by id, in order of age
    _writing: trio.Lock = attrs.field(factory=trio.Lock, init=False)  # who follows whom must not change meanwhile

    def __contains__(self, name: str) -> bool:
        """Say whether an answer is kept."""
        return name in self._heads

    def get(self, name: str) -> StoredResponse:
        """Return an answer. Raises UnknownResponse."""
        row = self._table.get(name) if name in self._heads else None
        if row is None:
            raise UnknownResponse(f"there is no response {name[:80]!r}; they are kept for 30 days", param="response_id")
        return row

    def item(self, name: str, param: str) -> Mapping[str, object]:
        """Return an item of an answer, or of what it was made from, by its id. Raises UnknownResponse naming `param`."""
        answer = f"resp_{name.split('_')[1]}" if name.count("_") == 2 else ""
        row = self._table.get(answer) if answer in self._heads else None
        items = [] if row is None else row.turn
        if (found := next((item for item in items if item["id"] == name), None)) is None:
            raise UnknownResponse(f"there is no item {name[:80]!r}; they are kept for 30 days", param=param)
        return found

    async def put(self, name: str, row: StoredResponse, before: Sequence[Mapping[str, object]] = ()) -> None:
        """Keep an answer, in place of the oldest where there are too many. Raises StoreError.

        `before` is what the answers before it have told, for the case that they have been forgotten while it was made.
        """
        async with self._writing:
            if row.previous is not None and row.previous not in self._heads:
                row = attrs.evolve(row, previous=None, input=(*map(dict, before), *row.named_input))
            await self._write({name: row})
            while names := self._surplus(name):
                await self._forget(names)

    async def delete(self, name: str) -> None:
        """Forget an answer. Raises UnknownResponse, and StoreError."""
        async with self._writing:
            self.get(name)
            await self._forget([name])

    async def expire(self) -> None:
        """Forget what has been kept for long enough. Raises StoreError."""
        async with self._writing:
            limit = self._clock() - KEPT_FOR
            await self._forget([name for name, head in self._heads.items() if head.created < limit])

    def turns(self, previous: str | None) -> Sequence[StoredResponse]:
        """Return the turns that lead up to and include `previous`, oldest first. Raises UnknownResponse.

        There are no more of them than rows, as an answer follows older ones only.
        """
        found: list[StoredResponse] = []
        while previous is not None:
            try:
                row = self.get(previous)
            except UnknownResponse as error:
                raise UnknownResponse(str(error), param="previous_response_id") from None
            found.append(row)
            previous = row.previous
        return found[::-1]

    def _surplus(self, newest: str) -> list[str]:
        """Return the oldest answers that are too many or too large, never the newest."""
        count, size, found = len(self._heads), sum(head.size for head in self._heads.values()), []
        for name, head in self._heads.items():
            if name == newest or (count <= _MAX_ROWS and size <= _MAX_BYTES):
                break
            found.append(name)
            count, size = count - 1, size - head.size
        return found

    async def _forget(self, names: Collection[str]) -> None:
        """Remove rows; in the same write those that followed them take over what they told."""
        gone = set(names)
        followers = [name for name, head in self._heads.items() if name not in gone and head.previous in gone]
        await self._write({name: self._joined(name, gone) for name in followers}, gone)

    def _joined(self, name: str, gone: Collection[str]) -> StoredResponse:
        """Return a row with the turns before it that are to go."""
        row = self.get(name)
        while row.previous in gone:
            before = self.get(str(row.previous))
            row = attrs.evolve(row, previous=before.previous, input=(*before.turn, *row.named_input))
        return row

    async def _write(self, rows: Mapping[str, StoredResponse], gone: Collection[str] = ()) -> None:
        """Write rows and remove others. What is known of them changes with the store, or not at all."""
        batch, heads = self._store.batch(), {}
        for name, row in rows.items():
            row = attrs.evolve(row, size=len(msgspec.msgpack.encode(row)))
            heads[name] = _Head(row.created, row.previous, row.size)
            self._table.put_in(batch, name, row)
        for name in gone:
            self._table.delete_in(batch, name)
        with trio.CancelScope(shield=True):  # one commit
            await self._store.commit(batch)
        self._heads |= heads
        for name in gone:
            del self._heads[name]


async def open_archive(store: KeyValueStore, clock: Callable[[], float] = time.time) -> ResponseArchive:
    """Read which answers there are. Raises StoreError."""
    table = Table(store, _PREFIX, text_codec(), struct_codec(StoredResponse))
    await table.prepare()
    heads = Table(store, _PREFIX, text_codec(), struct_codec(_Head))
    known = sorted(heads.items(), key=lambda pair: (pair[1].created, pair[0]))
    return ResponseArchive(store, table, clock, dict(known))
