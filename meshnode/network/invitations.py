"""Invitation codes: one word that says which network, and where one of its nodes is reached.

    meshnode- base32(msgpack [network id, addresses, check])        without padding, in lower case

The check is the first four bytes of the BLAKE3 of the rest, so that a code that was copied badly is refused as such. A code
gives the id of a network, which is all that keeps others out: it is as secret as the network is meant to be.
"""

import base64

import attrs
import msgspec
from blake3 import blake3

from meshnode.errors import RequestError
from meshnode.wire.tagged import UNDECODABLE

__all__ = ["Invitation", "decode_invitation", "encode_invitation"]

_MARK = "meshnode-"
_MAX_CODE = 4000  # characters


@attrs.frozen
class Invitation:
    """What a newcomer needs to know."""

    network_id: str
    addresses: tuple[str, ...]  # multiaddrs with /p2p/, best first


def encode_invitation(invitation: Invitation) -> str:
    """Return the code."""
    inner = msgspec.msgpack.encode((invitation.network_id, invitation.addresses))
    whole = blake3(inner).digest()[:4] + inner
    return _MARK + base64.b32encode(whole).decode().rstrip("=").lower()


def decode_invitation(code: str) -> Invitation:
    """Read a code. Raises RequestError that says what is wrong with it."""
    text = code.strip()
    if len(text) > _MAX_CODE or not text.lower().startswith(_MARK):
        raise RequestError(f"an invitation begins with {_MARK!r}; copy the whole line that `meshnode invite` printed")
    inner = text[len(_MARK) :].upper()
    try:
        whole = base64.b32decode(inner + "=" * (-len(inner) % 8))
        if blake3(whole[4:]).digest()[:4] != whole[:4]:
            raise RequestError("the invitation was not copied whole: its check does not match")
        network_id, addresses = msgspec.msgpack.decode(whole[4:], type=tuple[str, tuple[str, ...]])
    except (ValueError, *UNDECODABLE) as error:
        raise RequestError(f"the invitation was not copied whole: {error}") from error
    return Invitation(network_id, addresses)
