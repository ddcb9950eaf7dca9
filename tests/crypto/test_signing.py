import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.crypto.identity import Identity
from meshnode.crypto.signing import parse_peer_id, peer_id_of, verify
from meshnode.types.ids import PeerId

ALICE, BOB = Identity(bytes(32)), Identity(bytes(range(32)))


def test_a_peer_id_is_the_one_libp2p_computes():
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    for seed in (bytes(32), bytes(range(32)), b"\xff" * 32):
        assert Identity(seed).peer == ID.from_pubkey(create_new_key_pair(seed).public_key).to_base58()


def test_the_key_is_read_back_from_the_peer_id():
    assert ALICE.peer.startswith("12D3Koo")
    assert peer_id_of(parse_peer_id(ALICE.peer)) == ALICE.peer


def test_a_signature_holds_for_its_signer_its_purpose_and_its_bytes_only():
    signature = ALICE.sign("offer", b"payload")
    assert len(signature) == 64
    assert verify(ALICE.peer, "offer", b"payload", signature)
    assert not verify(BOB.peer, "offer", b"payload", signature)
    assert not verify(ALICE.peer, "ticket", b"payload", signature)
    assert not verify(ALICE.peer, "offer", b"payloae", signature)
    assert not verify(ALICE.peer, "offer", b"payload", signature[:-1])
    assert not verify(ALICE.peer, "offer", b"payload", b"")


def test_purpose_and_payload_cannot_be_shifted_into_each_other():
    assert not verify(ALICE.peer, "offers", b"x", ALICE.sign("offer", b"sx"))
    with pytest.raises(ValueError, match="zero byte"):
        ALICE.sign("offer\0", b"")


@given(st.text(max_size=80))
def test_what_is_no_peer_id_is_refused(text):
    with pytest.raises(ValueError, match="not the peer id"):
        parse_peer_id(text)
    assert not verify(PeerId(text), "offer", b"", bytes(64))


def test_a_very_long_peer_id_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="not the peer id"):
        parse_peer_id("2" * 10_000_000)


def test_the_seed_is_not_shown():
    assert "seed" not in repr(BOB)
    assert BOB.peer in repr(BOB)
