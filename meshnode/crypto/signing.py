"""Signatures that hold for one purpose only, and peer ids from which the signer's key can be read back.

A peer id of an Ed25519 key is that key itself: base58 of an identity multihash of its protobuf, as
https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md says. No lookup is needed to check a signature.
"""

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from meshnode.types.ids import PeerId

__all__ = ["parse_peer_id", "peer_id_of", "signed_bytes", "verify"]

# identity multihash (0x00) of 36 bytes (0x24): protobuf field 1, the key's type, is Ed25519 (1); field 2 is 32 bytes
_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_KEY_LENGTH = 32
_MAX_TEXT = 64  # characters; a peer id has 52


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the peer id of a raw Ed25519 public key (32 bytes)."""
    if len(public_key) != _KEY_LENGTH:
        raise ValueError(f"an Ed25519 public key has {_KEY_LENGTH} bytes, not {len(public_key)}")
    return PeerId(base58.b58encode(_PREFIX + public_key).decode())


def parse_peer_id(text: str) -> bytes:
    """Return the raw public key inside a peer id. Raises ValueError when it is not the id of an Ed25519 key."""
    try:
        raw = base58.b58decode(text) if len(text) <= _MAX_TEXT else b""
    except ValueError:
        raw = b""
    if len(raw) != len(_PREFIX) + _KEY_LENGTH or not raw.startswith(_PREFIX):
        raise ValueError(f"{text[:_MAX_TEXT]!r} is not the peer id of an Ed25519 key")
    return raw[len(_PREFIX) :]


def signed_bytes(domain: str, payload: bytes) -> bytes:
    """Return what is really signed: a signature made for one `domain` says nothing in another."""
    if "\0" in domain:
        raise ValueError("a signature's domain cannot contain a zero byte")
    return b"meshnode:" + domain.encode() + b"\0" + payload


def verify(peer: PeerId, domain: str, payload: bytes, signature: bytes) -> bool:
    """Say whether `peer` signed `payload` for `domain`; False too when `peer` is no peer id."""
    try:
        Ed25519PublicKey.from_public_bytes(parse_peer_id(peer)).verify(signature, signed_bytes(domain, payload))
    except (ValueError, InvalidSignature):
        return False
    return True
