"""Answers that are kept: on disk, for thirty days, and not without end."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import attrs

from meshnode.errors import UnknownResponse
from meshnode.store.protocol import KeyValueStore
from meshnode.store.tables import Table, struct_codec, text_codec

__all__ = ["ResponseArchive", "StoredResponse", "open_archive"]

_PREFIX = b"responses/"
KEPT_FOR = 30 * 86400.0  # seconds, as OpenAI does
_MAX_ROWS = 10_000
_MAX_TURNS = 1000  # that a conversation goes back


@attrs.frozen
class StoredResponse:
    """One answer. JSON as it was sent."""

    created: float  # Unix seconds
    previous: str | None
    input: tuple[dict[str, object], ...]  # of this turn
    response: dict[str, object]  # the whole reply

    @property
    def output(self) -> list[dict[str, object]]:
        """The items of the answer."""
        return cast("list[dict[str, object]]", self.response["output"])

    @property
    def named_input(self) -> list[dict[str, object]]:
        """The items that it was made from, each with an id."""
        prefix = str(self.response["id"]).partition("_")[2]
        return [{"id": f"item_{prefix}_{index}", **item} for index, item in enumerate(self.input)]


@attrs.define(eq=False)
class ResponseArchive:
    """Rows by id."""

    _table: Table[str, StoredResponse]
    _clock: Callable[[], float]
    _created: dict[str, float]  # by id, in order of age

    def __contains__(self, name: str) -> bool:
        """Say whether an answer is kept."""
        return name in self._created

    def get(self, name: str) -> StoredResponse:
        """Return an answer. Raises UnknownResponse."""
        row = self._table.get(name) if name in self._created else None
        if row is None:
            raise UnknownResponse(f"there is no response {name[:80]!r}; they are kept for 30 days", param="response_id")
        return row

    def item(self, name: str, param: str) -> Mapping[str, object]:
        """Return an item of an answer, or of what it was made from, by its id. Raises UnknownResponse naming `param`."""
        answer = f"resp_{name.split('_')[1]}" if name.count("_") == 2 else ""
        row = self._table.get(answer) if answer in self._created else None
        items = [] if row is None else [*row.named_input, *row.output]
        if (found := next((item for item in items if item["id"] == name), None)) is None:
            raise UnknownResponse(f"there is no item {name[:80]!r}; they are kept for 30 days", param=param)
        return found

    async def put(self, name: str, row: StoredResponse) -> None:
        """Keep an answer, in place of the oldest where there are too many. Raises StoreError."""
        await self._table.put(name, row)
        self._created.setdefault(name, row.created)
        while len(self._created) > _MAX_ROWS:
            await self.delete(next(iter(self._created)))

    async def delete(self, name: str) -> None:
        """Forget an answer. Raises UnknownResponse."""
        self.get(name)
        await self._table.delete(name)
        del self._created[name]

    async def expire(self) -> None:
        """Forget what has been kept for long enough."""
        limit = self._clock() - KEPT_FOR
        for name in [name for name, created in self._created.items() if created < limit]:
            await self._table.delete(name)
            del self._created[name]

    def turns(self, previous: str | None) -> Sequence[StoredResponse]:
        """Return the turns that lead up to and include `previous`, oldest first. Raises UnknownResponse."""
        found: list[StoredResponse] = []
        while previous is not None and len(found) < _MAX_TURNS:
            try:
                row = self.get(previous)
            except UnknownResponse as error:
                raise UnknownResponse(str(error), param="previous_response_id") from None
            found.append(row)
            previous = row.previous
        return found[::-1]


@attrs.frozen
class _Age:
    created: float


async def open_archive(store: KeyValueStore, clock: Callable[[], float] = time.time) -> ResponseArchive:
    """Read which answers there are. Raises StoreError."""
    table = Table(store, _PREFIX, text_codec(), struct_codec(StoredResponse))
    await table.prepare()
    ages = Table(store, _PREFIX, text_codec(), struct_codec(_Age))
    known = sorted((row.created, name) for name, row in ages.items())
    return ResponseArchive(table, clock, {name: created for created, name in known})
