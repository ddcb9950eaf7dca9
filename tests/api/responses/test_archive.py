"""What is kept of answers: each goes on from those before it, however many of these have been forgotten, and not without end."""

import pytest
import trio

from meshnode.api.responses import archive as module
from meshnode.api.responses.archive import KEPT_FOR, StoredResponse, open_archive
from meshnode.errors import UnknownResponse
from meshnode.store.memory import MemoryStore


def said(text):
    return {"type": "message", "role": "user", "content": text}


def row(name, previous=None, created=0.0, text=None):
    output = [{"id": f"msg_{name}_0", "type": "message", "role": "assistant", "content": f"{name}!"}]
    response = {"id": f"resp_{name}", "status": "completed", "output": output}
    return StoredResponse(created, previous and f"resp_{previous}", (said(text or f"{name}?"),), response)


async def kept(store, *chain, clock=lambda: 0.0):
    """Open an archive and keep answers in it, each of which follows the one before."""
    archive = await open_archive(store, clock)
    for number, name in enumerate(chain):
        await archive.put(f"resp_{name}", row(name, chain[number - 1] if number else None, float(number)))
    return archive


def told(archive, name):
    return [item["content"] for turn in archive.turns(f"resp_{name}") for item in turn.turn]


def named(archive, name):
    return [item["id"] for turn in archive.turns(f"resp_{name}") for item in turn.turn]


WHOLE = ["a?", "a!", "b?", "b!", "c?", "c!"]


@pytest.mark.parametrize("forgotten", ["a", "b", "ab", "ba"])
async def test_a_conversation_goes_on_from_an_answer_whose_forerunners_are_forgotten(forgotten):
    store = MemoryStore()
    archive = await kept(store, "a", "b", "c")
    names = named(archive, "c")
    for name in forgotten:
        await archive.delete(f"resp_{name}")
    for known in (archive, await open_archive(store)):
        assert told(known, "c") == WHOLE
        assert named(known, "c") == names, "an item keeps its name"
        assert known.item("item_c_0", "input")["content"] == "c?"
        for name in forgotten:
            with pytest.raises(UnknownResponse):
                known.get(f"resp_{name}")
            with pytest.raises(UnknownResponse):
                known.item(f"item_{name}_0", "input")


async def test_all_that_follow_an_answer_take_over_what_it_told():
    archive = await kept(MemoryStore(), "a")
    for name in ("left", "right"):
        await archive.put(f"resp_{name}", row(name, "a"))
    await archive.delete("resp_a")
    assert told(archive, "left") == ["a?", "a!", "left?", "left!"]
    assert told(archive, "right") == ["a?", "a!", "right?", "right!"]


async def test_an_answer_whose_forerunner_goes_while_it_is_made_keeps_what_it_was_made_from():
    archive = await kept(MemoryStore(), "a", "b")
    before = [item for turn in archive.turns("resp_b") for item in turn.turn]
    await archive.put("resp_c", row("c", "b"), before)
    await archive.delete("resp_b")
    await archive.put("resp_c", row("c", "b"), before)  # as an answer in the background is put again at its end
    assert told(archive, "c") == WHOLE
    await archive.delete("resp_a")
    assert told(archive, "c") == WHOLE


async def test_whoever_comes_after_the_thirty_days_of_an_answer_takes_it_over_and_then_goes_too():
    now = [0.0]
    store = MemoryStore()
    archive = await kept(store, "a", "b", "c", clock=lambda: now[0])
    now[0] = KEPT_FOR + 1.5  # a and b are too old
    await archive.expire()
    assert told(archive, "c") == WHOLE
    now[0] += 1
    await archive.expire()
    for known in (archive, await open_archive(store)):
        with pytest.raises(UnknownResponse):
            known.get("resp_c")
    assert not list(store.iterate(b"responses/"))


async def test_there_are_so_many_answers_and_no_more(monkeypatch):
    monkeypatch.setattr(module, "_MAX_ROWS", 2)
    store = MemoryStore()
    archive = await kept(store, "a", "b", "c")
    assert told(archive, "c") == WHOLE
    assert len(list(store.iterate(b"responses/"))) == 2


async def test_answers_take_so_much_room_and_no_more(monkeypatch):
    monkeypatch.setattr(module, "_MAX_BYTES", 25_000)
    store = MemoryStore()
    archive = await open_archive(store)
    for name in "abcdef":
        await archive.put(f"resp_{name}", row(name, text=name * 10_000))
    again = await open_archive(store)
    await again.put("resp_g", row("g", text="g" * 24_900))
    assert [name for name in "abcdefg" if f"resp_{name}" in again] == ["g"]
    await again.put("resp_h", row("h", text="h" * 99_000))
    assert "resp_h" in again, "the newest stays, however large it is"


async def test_writers_do_not_come_between_each_other():
    archive = await kept(MemoryStore(), "a")
    before = archive.get("resp_a").turn
    async with trio.open_nursery() as nursery:
        nursery.start_soon(archive.put, "resp_b", row("b", "a"), before)
        nursery.start_soon(archive.delete, "resp_a")
        nursery.start_soon(archive.put, "resp_c", row("c", "a"), before)
    assert told(archive, "b") == ["a?", "a!", "b?", "b!"]
    assert told(archive, "c") == ["a?", "a!", "c?", "c!"]


async def test_a_long_conversation_is_never_cut():
    archive = await kept(MemoryStore(), *(f"n{number}" for number in range(1500)))
    assert len(told(archive, "n1499")) == 3000
