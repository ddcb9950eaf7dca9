import pytest

from meshnode.crypto.identity import Identity
from meshnode.network import kademlia
from meshnode.network.kademlia import Contact, ProviderBook, RoutingTable, checked_contact, distance, point_of

PEERS = [Identity(number.to_bytes(32, "big")).peer for number in range(300)]
CONTACTS = [Contact(peer, (f"/ip4/192.0.2.7/tcp/1/p2p/{peer}",)) for peer in PEERS]


def test_points_of_two_networks_have_nothing_to_do_with_each_other():
    assert point_of("ours", b"key") == point_of("ours", b"key")
    assert point_of("ours", b"key") != point_of("theirs", b"key")


def test_the_nearest_come_first_and_those_who_were_there_first_stay():
    table = RoutingTable("ours", point_of("ours", b"us"))
    for contact in CONTACTS:
        table.seen(contact)
    everyone = table.closest(point_of("ours", b"us"), 10_000)
    assert 60 < len(everyone) < 300
    target = point_of("ours", b"target")
    nearest = table.closest(target)
    distances = [distance(target, table.point(contact.peer)) for contact in nearest]
    assert len(nearest) == 20
    assert distances == sorted(distances)
    assert distances[-1] <= min(distance(target, table.point(each.peer)) for each in everyone if each not in nearest)
    assert CONTACTS[0] in everyone


def test_who_fails_makes_room():
    table = RoutingTable("ours", point_of("ours", b"us"))
    for contact in CONTACTS:
        table.seen(contact)
    left_out = next(each for each in CONTACTS if each not in table.closest(bytes(32), 10_000))
    bucket = [each for each in CONTACTS if table._bucket(each.peer) is table._bucket(left_out.peer)]
    table.failed(bucket[0].peer)
    table.seen(left_out)
    assert left_out in table.closest(bytes(32), 10_000)
    assert bucket[0] not in table.closest(bytes(32), 10_000)


def test_a_contact_is_believed_only_at_addresses_that_name_it():
    own, other = CONTACTS[0], CONTACTS[1]
    assert checked_contact(own.peer, (*other.addresses, "nonsense", *own.addresses)) == own
    assert checked_contact(own.peer, other.addresses) is None
    assert checked_contact("nobody", ()) is None


def test_records_are_found_until_they_are_too_old():
    book = ProviderBook()
    point = point_of("ours", b"key")
    book.add(point, CONTACTS[0], now=0)
    book.add(point, CONTACTS[1], now=100)
    assert book.of(point, now=200) == [CONTACTS[1], CONTACTS[0]]
    assert book.of(point, now=1850) == [CONTACTS[1]]
    assert book.of(point, now=1901) == []
    assert book.of(point_of("ours", b"other"), now=0) == []
    book.add(point_of("ours", b"third"), CONTACTS[2], now=5000)
    assert list(book._records) == [point_of("ours", b"third")]


@pytest.mark.parametrize("peer_count", [1, 300])
def test_the_book_is_bounded(monkeypatch, peer_count):
    monkeypatch.setattr(kademlia, "_MAX_KEYS", 100)
    monkeypatch.setattr(kademlia, "_MAX_KEYS_PER_PEER", 50)
    book = ProviderBook()
    for number in range(1000):
        book.add(point_of("ours", str(number % 200).encode()), CONTACTS[number % peer_count], now=0)
    assert len(book._records) == (50 if peer_count == 1 else 100)
    for contact in CONTACTS:
        book.add(bytes(32), contact, now=0)
    assert len(book.of(bytes(32), now=1)) <= 64
