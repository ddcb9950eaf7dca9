import attrs
import msgspec
import pytest

from meshnode.errors import PeerRefused, VersionMismatch
from meshnode.types.ids import PeerId
from meshnode.wire.control_messages import Hello
from meshnode.wire.versions import Feature, agree, network_proof

PEER = PeerId("peer")
PROOF = network_proof("home", PEER)


def hello(oldest=1, newest=1, features=7, network=PROOF, version="0.1.0", clock=0.0):
    return Hello(oldest, newest, features, network, version, clock)


def test_two_of_the_same_kind_agree_on_everything():
    terms = agree(hello(), hello(version="0.1.1"), PEER, PROOF)
    assert attrs.asdict(terms) == {
        "version": 1, "features": Feature(7), "is_newer": False, "program": "0.1.1", "skew": 0.0,
        "for_route": False,
    }  # fmt: skip


def test_the_newest_version_that_both_speak_is_spoken():
    assert agree(hello(1, 4), hello(2, 3), PEER, PROOF).version == 3


@pytest.mark.parametrize(("ours", "theirs", "old"), [((1, 2), (3, 4), "this node"), ((3, 3), (1, 2), "that node")])
def test_without_a_common_version_both_are_named_and_who_has_to_update(ours, theirs, old):
    with pytest.raises(VersionMismatch, match=rf"0\.9\.9.*0\.1\.0.*Update {old}") as caught:
        agree(hello(*ours), hello(*theirs, version="0.9.9"), PEER, PROOF)
    spans = [f"{first} to {last}" if first != last else str(first) for first, last in (ours, theirs)]
    assert all(span in str(caught.value) for span in spans)


def test_only_features_of_both_are_used_and_unknown_ones_tell_of_a_newer_peer():
    terms = agree(hello(features=3), hello(features=6 | 1 << 40), PEER, PROOF)
    assert terms.features == Feature.DELEGATION
    assert terms.is_newer


def test_another_network_is_refused():
    with pytest.raises(PeerRefused, match="network_id"):
        agree(hello(), hello(network=network_proof("work", PEER)), PEER, PROOF)


def test_what_one_peer_shows_of_its_network_is_of_no_use_to_another():
    with pytest.raises(PeerRefused, match="another network"):
        agree(hello(), hello(network=network_proof("home", PeerId("somebody else"))), PEER, PROOF)


def test_a_clock_that_is_an_hour_off_is_told_and_does_no_harm():
    assert agree(hello(clock=7200.0), hello(clock=3600.0), PEER, PROOF).skew == -3600.0


def test_a_proof_has_one_length():
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(hello(network=b"short")), type=Hello)
