"""Codes that lead a newcomer here."""

import base64

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from support.memory_hosts import address_of

from meshnode.errors import RequestError
from meshnode.network.invitations import Invitation, decode_invitation, encode_invitation

INVITATION = Invitation("our own mesh", (address_of(1), address_of(2)))


@given(st.text(max_size=100), st.lists(st.text(max_size=100), max_size=8).map(tuple))
def test_what_is_encoded_is_decoded(network_id, addresses):
    invitation = Invitation(network_id, addresses)
    assert decode_invitation(encode_invitation(invitation)) == invitation


def test_a_code_is_one_word_and_survives_capitals_and_spaces_around_it():
    code = encode_invitation(INVITATION)
    assert code.isascii()
    assert code.startswith("meshnode-")
    assert not set(code) & set(" /+=")
    assert decode_invitation(f"  {code.upper()}\n") == INVITATION


def test_a_letter_that_was_copied_badly_is_noticed():
    code = encode_invitation(INVITATION)
    for place in range(len("meshnode-"), len(code), 7):
        wrong = "b" if code[place] != "b" else "c"
        with pytest.raises(RequestError, match="not copied whole"):
            decode_invitation(code[:place] + wrong + code[place + 1 :])
    with pytest.raises(RequestError, match="not copied whole"):
        decode_invitation(code[:-20])


@pytest.mark.parametrize(
    "code", ["", "hello", "meshnode", "meshnode-", "meshnode-äöü", "meshnode-!!", "meshnode-" + "a" * 5000]
)
def test_what_is_no_code_is_refused_with_a_word_about_what_one_is(code):
    with pytest.raises(RequestError, match="invitation"):
        decode_invitation(code)


@pytest.mark.parametrize(
    "inner", [b"", b"\xc1", msgspec.msgpack.encode(["id"]), msgspec.msgpack.encode([1, [2]]), b"\x93" * 200]
)
def test_a_code_with_a_right_check_and_nonsense_in_it_is_refused(inner):
    code = "meshnode-" + base64.b32encode(blake3(inner).digest()[:4] + inner).decode().rstrip("=").lower()
    with pytest.raises(RequestError):
        decode_invitation(code)
