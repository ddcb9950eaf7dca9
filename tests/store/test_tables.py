import attrs
import pytest

from meshnode.errors import StoreError
from meshnode.store import MemoryStore, Table, struct_codec, text_codec


@attrs.frozen
class Row:
    count: int


def table(store, **extra):
    return Table(store, b"rows/", text_codec(), struct_codec(Row), **extra)


async def test_rows_come_back_as_they_went_in_and_only_from_their_prefix():
    store = MemoryStore()
    rows, other = table(store), Table(store, b"other/", text_codec(), text_codec())
    await rows.prepare()
    await rows.put("b", Row(2))
    await rows.put("a", Row(1))
    await other.put("c", "3")
    assert list(rows.items()) == [("a", Row(1)), ("b", Row(2))]
    await rows.delete("a")
    assert rows.get("a") is None
    assert other.get("c") == "3"


async def test_a_damaged_row_is_named():
    store = MemoryStore({b"rows/x": b"\xc1"})
    with pytest.raises(StoreError, match=r"rows/.*'x'"):
        table(store).get("x")


async def test_rows_are_migrated_step_by_step_and_once():
    store = MemoryStore()
    old = Table(store, b"rows/", text_codec(), text_codec())
    await old.prepare()
    await old.put("one", "1")
    await old.put("drop", "0")
    calls = []

    def first(key, value):
        calls.append(key)
        return None if key == b"drop" else (b"new-" + key, value)

    def second(key, value):
        return key, struct_codec(Row).encode(Row(int(value)))

    for _ in range(2):
        new = table(store, version=3, migrations={1: first, 2: second})
        await new.prepare()
        assert list(new.items()) == [("new-one", Row(1))]
    assert sorted(calls) == [b"drop", b"one"]


async def test_a_table_from_the_future_is_refused():
    store = MemoryStore()
    await table(store, version=2).prepare()
    with pytest.raises(StoreError, match="newer"):
        await table(store).prepare()


async def test_a_missing_step_is_refused_and_changes_nothing():
    store = MemoryStore()
    await table(store).prepare()
    await table(store).put("a", Row(1))
    with pytest.raises(StoreError, match="no migration from schema version 1"):
        await table(store, version=2).prepare()
    assert table(store).get("a") == Row(1)
