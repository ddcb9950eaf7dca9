"""What nodes say of themselves: believed when signed, new and of our time, and never by the dead."""

import attrs
import msgspec
import pytest
from support.memory_hosts import address_of, identity_of

from meshnode.crypto.identity import Identity
from meshnode.errors import PeerMisbehaved
from meshnode.network import gossip
from meshnode.network.gossip import MAX_RECORD, GossipBook
from meshnode.types.peers import Offer
from meshnode.wire.control_messages import SignedRecord

NOW = 1_800_000_000.0
HOUR = 3600.0


class Clock:
    def __init__(self, time=NOW):
        self.time = time

    def __call__(self):
        return self.time


def book(number=1, network="home", clock=None):
    return GossipBook(identity_of(number), network, clock or Clock())


def offer(number, sequence=1, issued=NOW, **more):
    return Offer(identity_of(number).peer, sequence, issued, "1", (address_of(number),), **more)


def record(said, *, signed_by=None, network="home"):
    """Return an offer as its node publishes it."""
    identity = signed_by or next(each for each in map(identity_of, range(1, 300)) if each.peer == said.peer)
    signer = GossipBook(identity, network, Clock())
    payload = msgspec.msgpack.encode(said)
    return SignedRecord(said.peer, payload, identity.sign(signer._domain, payload))


# Who is believed


def test_a_signed_record_is_news_once():
    ours, said = book(), offer(2)
    assert ours.accept(record(said)) == said
    assert ours.offer(said.peer) == said
    assert ours.accept(record(said)) is None


def test_a_newer_record_replaces_an_older_one_and_never_the_other_way():
    ours = book()
    ours.accept(record(offer(2, 5)))
    assert ours.accept(record(offer(2, 4, sessions=1))) is None
    assert ours.accept(record(offer(2, 5, sessions=1))) is None
    assert ours.accept(record(offer(2, 6))) == offer(2, 6)
    assert ours.offer(identity_of(2).peer).sequence == 6


def test_our_own_record_comes_from_us_alone():
    ours = book()
    assert ours.accept(record(offer(1, 99))) is None
    assert ours.offer(identity_of(1).peer) is None


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        (record(offer(2), network="work"), "another network"),
        (record(offer(2), signed_by=identity_of(3)), "wrong signature"),
        (msgspec.structs.replace(record(offer(2)), payload=msgspec.msgpack.encode(offer(2, 9))), "signature"),
        (msgspec.structs.replace(record(offer(2)), signature=bytes(64)), "signature"),
        (msgspec.structs.replace(record(offer(2)), signer="12D3KooWnobody"), "signature"),
    ],
)
def test_a_forgery_is_refused(forged, why):
    ours = book()
    with pytest.raises(PeerMisbehaved, match=why):
        ours.accept(forged)
    assert ours.records() == ()


def signed_payload(number, payload):
    identity = identity_of(number)
    return SignedRecord(identity.peer, payload, identity.sign(book()._domain, payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"peer": 1}),
        msgspec.msgpack.encode({**msgspec.to_builtins(offer(2)), "sessions": -1}),
        b"\x91" * 5000,
    ],
)
def test_a_signature_does_not_make_sense_of_nonsense(payload):
    with pytest.raises(PeerMisbehaved, match="malformed"):
        book().accept(signed_payload(2, payload))


def test_nobody_speaks_for_another():
    with pytest.raises(PeerMisbehaved, match="somebody else"):
        book().accept(signed_payload(2, msgspec.msgpack.encode(offer(3))))


def test_a_record_that_is_too_long_is_not_even_checked():
    with pytest.raises(PeerMisbehaved, match="at most"):
        book().accept(SignedRecord(identity_of(2).peer, bytes(MAX_RECORD + 1), bytes(64)))
    with pytest.raises(ValueError, match="does not fit"):
        book().publish(offer(1, node="x" * MAX_RECORD))


@pytest.mark.parametrize("age", [-HOUR, HOUR, 1.9 * HOUR, -1.9 * HOUR])
def test_a_clock_that_is_an_hour_off_is_no_crime(age):
    assert book().accept(record(offer(2, issued=NOW - age))) is not None


@pytest.mark.parametrize("age", [3.1 * HOUR, 24 * HOUR, -2.1 * HOUR, -1e9])
def test_stale_and_future_records_are_refused(age):
    with pytest.raises(PeerMisbehaved, match="hours old"):
        book().accept(record(offer(2, issued=NOW - age)))


# Who is gone


def test_the_dead_do_not_come_back_by_gossip_but_by_their_own_new_word():
    ours, said = book(), record(offer(2, 7))
    ours.accept(said)
    ours.bury(identity_of(2).peer)
    assert ours.offer(identity_of(2).peer) is None
    assert ours.accept(said) is None
    assert ours.accept(record(offer(2, 6))) is None
    assert ours.accept(record(offer(2, 8))) is not None


def test_whoever_is_connected_again_is_believed():
    ours, said = book(), record(offer(2, 7))
    ours.accept(said)
    ours.bury(identity_of(2).peer)
    ours.revive(identity_of(2).peer)
    assert ours.accept(said) is not None


def test_what_is_not_renewed_expires():
    clock = Clock()
    ours = book(clock=clock)
    ours.accept(record(offer(2)))
    ours.accept(record(offer(3, issued=NOW + HOUR)))
    clock.time = NOW + 3.5 * HOUR
    assert ours.expire() == (identity_of(2).peer,)
    assert ours.expire() == ()
    assert [each.signer for each, _ in ours.records()] == [identity_of(3).peer]


def test_the_book_is_bounded_and_our_own_record_comes_first(monkeypatch):
    monkeypatch.setattr(gossip, "MAX_PEERS", 10)
    ours = book()
    for number in range(2, 30):
        ours.accept(record(offer(number)))
    ours.publish(offer(1))
    assert len(ours.records()) == 10
    assert ours.records()[0][0].signer == identity_of(1).peer


def test_who_has_looked_through_the_book_need_not_go_through_what_was_there_then():
    ours = book()
    ours.accept(record(offer(2)))
    ours.accept(record(offer(3)))
    seen = ours.version
    assert ours.records(seen) == ()
    ours.accept(record(offer(4)))
    ours.accept(record(offer(2, sequence=offer(2).sequence + 1)))
    ours.publish(offer(1))
    assert [each.signer for each, _ in ours.records(seen)] == [identity_of(number).peer for number in (1, 4, 2)]
    assert len(ours.records()) == 4


def test_books_have_the_same_digest_when_they_say_the_same_whatever_the_order():
    ours, theirs = book(1), book(9)
    for number in (2, 3):
        ours.accept(record(offer(number, 5)))
    for number, sequence in ((3, 5), (2, 4)):
        theirs.accept(record(offer(number, sequence)))
    assert ours.digest != theirs.digest
    theirs.accept(record(offer(2, 5)))
    assert ours.digest == theirs.digest
    ours.bury(identity_of(3).peer)
    assert ours.digest != theirs.digest
    theirs.bury(identity_of(3).peer)
    assert ours.digest == theirs.digest
    ours.bury(identity_of(2).peer)
    assert ours.digest == 0


def test_our_sequence_grows_even_when_the_clock_does_not():
    clock = Clock()
    ours = book(clock=clock)
    first = ours.next_sequence()
    ours.publish(offer(1, first))
    clock.time -= 10 * HOUR
    assert ours.next_sequence() == first + 1


def test_an_identity_that_nobody_knows_is_as_good_as_any():
    stranger = Identity.generate()
    said = Offer(stranger.peer, 1, NOW, "1", ())
    assert book().accept(record(said, signed_by=stranger)) == said


def test_a_node_whose_clock_was_set_back_goes_on_above_what_others_have_heard():
    clock = Clock()
    before = book(clock=clock)
    before.publish(attrs.evolve(offer(1), sequence=before.next_sequence()))
    clock.time -= 3600
    after = gossip.GossipBook(identity_of(1), "home", clock, floor=before.offer(identity_of(1).peer).sequence)
    assert after.next_sequence() == before.offer(identity_of(1).peer).sequence + 1


def test_a_flood_of_strangers_takes_no_more_memory_than_the_bound_and_never_our_own_record(monkeypatch):
    ours = book()
    ours.publish(offer(1))
    size = len(ours.records()[0][0].payload)
    monkeypatch.setattr(gossip, "_MAX_BYTES", 10 * size + size // 2)
    for number in range(2, 60):
        ours.accept(record(offer(number)))
    kept = [signed.signer for signed, _ in ours.records()]
    assert kept[0] == identity_of(1).peer
    assert 9 <= len(kept) <= 10
    ours.bury(kept[1])
    assert len(ours.records()) == len(kept) - 1
