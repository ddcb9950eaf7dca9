"""The node's own key: made on the first start, kept in the data folder, never shown."""

import os
import secrets
from pathlib import Path

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.crypto.signing import peer_id_of, signed_bytes
from meshnode.errors import ConfigError
from meshnode.types.ids import PeerId

__all__ = ["Identity", "load_identity"]

_SEED_LENGTH = 32


@attrs.frozen
class Identity:
    """An Ed25519 key and the peer id that others know it by."""

    seed: bytes = attrs.field(repr=False)  # 32 bytes, secret
    _key: Ed25519PrivateKey = attrs.field(init=False, repr=False, eq=False)
    peer: PeerId = attrs.field(init=False)

    @_key.default
    def _key_of_seed(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @peer.default
    def _peer_of_key(self) -> PeerId:
        return peer_id_of(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> "Identity":
        """Return a new identity."""
        return cls(secrets.token_bytes(_SEED_LENGTH))

    def sign(self, domain: str, payload: bytes) -> bytes:
        """Return the signature (64 bytes) of `payload` for `domain`, which `signing.verify` checks."""
        return self._key.sign(signed_bytes(domain, payload))


def load_identity(path: Path) -> Identity:
    """Return the identity kept in `path` (PEM, readable by the owner only); it is made if it is not there.

    Raises ConfigError when the file cannot be read or written, or holds something else. A damaged key is not replaced: the
    node would be somebody else to all its peers.
    """
    try:
        try:
            pem = path.read_bytes()
        except FileNotFoundError:
            return _make(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise ConfigError(f"the identity file {path} cannot be used: {error.strerror or error}") from error
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the identity file {path} is damaged; {_REMEDY}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"the identity file {path} does not hold an Ed25519 key; {_REMEDY}")
    return Identity(key.private_bytes_raw())


_REMEDY = "restore it from a backup, or delete it and this node starts over under a new peer id"


def _make(path: Path) -> Identity:
    identity = Identity.generate()
    pem = Ed25519PrivateKey.from_private_bytes(identity.seed).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    return identity
