"""Addresses outlive the process, and are merged: nobody is dropped for being away."""

import pytest
from support.memory_hosts import identity_of

from meshnode.errors import StoreError
from meshnode.network import address_book
from meshnode.network.address_book import open_address_book
from meshnode.store.memory import MemoryStore

HERE, THERE = identity_of(1).peer, identity_of(2).peer


async def test_what_was_reached_is_known_after_a_restart_the_last_one_first():
    store = MemoryStore()
    book = await open_address_book(store, "home")
    await book.reached(HERE, ["/a"], 1000.0)
    await book.reached(THERE, ["/b"], 2000.0)
    again = await open_address_book(store, "home")
    assert [(known.peer, known.addresses, known.reached) for known in again.peers()] == [
        (THERE, ("/b",), 2000.0),
        (HERE, ("/a",), 1000.0),
    ]


async def test_addresses_are_merged_the_one_that_worked_last_first():
    book = await open_address_book(MemoryStore(), "home")
    await book.reached(HERE, ["/a", "/b"], 1000.0)
    await book.reached(HERE, ["/c"], 1001.0)
    await book.reached(HERE, ["/b"], 1002.0)
    assert book.peers()[0].addresses == ("/b", "/c", "/a")


async def test_one_who_is_away_stays_however_often_others_are_reached():
    store = MemoryStore()
    book = await open_address_book(store, "home")
    await book.reached(HERE, ["/a"], 0.0)
    for number in range(100):
        await book.reached(THERE, [f"/b{number}"], 1e6 + number)
    again = await open_address_book(store, "home")
    assert {known.peer for known in again.peers()} == {HERE, THERE}
    assert len(again.peers()[0].addresses) == 8


async def test_peers_of_another_network_are_other_people():
    store = MemoryStore()
    await (await open_address_book(store, "home")).reached(HERE, ["/a"], 1.0)
    assert (await open_address_book(store, "work")).peers() == ()


async def test_the_book_is_bounded_and_the_one_not_reached_for_longest_goes(monkeypatch):
    monkeypatch.setattr(address_book, "_MAX_PEERS", 3)
    store = MemoryStore()
    book = await open_address_book(store, "home")
    for number in (5, 1, 4, 2, 3):
        await book.reached(identity_of(number).peer, ["/a"], float(number))
    kept = [identity_of(number).peer for number in (5, 4, 3)]
    assert [known.peer for known in book.peers()] == kept
    assert [known.peer for known in (await open_address_book(store, "home")).peers()] == kept


async def test_reaching_a_peer_as_before_writes_nothing_within_the_hour():
    class Counting(MemoryStore):
        commits = 0

        async def commit(self, batch, *, sync=False):
            self.commits += 1
            await super().commit(batch, sync=sync)

    store = Counting()
    book = await open_address_book(store, "home")
    await book.reached(HERE, ["/a"], 0.0)
    before = store.commits
    for second in range(1, 3000, 100):
        await book.reached(HERE, ["/a"], float(second))
    assert store.commits == before
    await book.reached(HERE, ["/a"], 3601.0)
    assert store.commits == before + 1


async def test_a_store_that_fails_says_so():
    class Full(MemoryStore):
        async def commit(self, batch, *, sync=False):
            raise StoreError("no space left")

    book = await open_address_book(MemoryStore(), "home")
    book._table._store = Full()
    with pytest.raises(StoreError):
        await book.reached(HERE, ["/a"], 0.0)
