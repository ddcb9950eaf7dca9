import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from meshnode.crypto.identity import load_identity
from meshnode.errors import ConfigError


def test_a_node_stays_who_it_is(tmp_path):
    first = load_identity(tmp_path / "node" / "identity.key")
    assert load_identity(tmp_path / "node" / "identity.key") == first
    assert load_identity(tmp_path / "other.key").peer != first.peer


def test_only_the_owner_can_read_the_key(tmp_path):
    path = tmp_path / "identity.key"
    load_identity(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.key"]
    path.chmod(0o644)
    load_identity(path)
    assert path.stat().st_mode & 0o777 == 0o600


def _other_kind_of_key():
    return generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\n", _other_kind_of_key()])
def test_a_damaged_key_is_reported_and_never_replaced(tmp_path, content):
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="restore it from a backup"):
        load_identity(path)
    assert path.read_bytes() == content


def test_an_unusable_place_is_named(tmp_path):
    (tmp_path / "identity.key").mkdir()
    with pytest.raises(ConfigError, match=r"identity\.key cannot be used: Is a directory"):
        load_identity(tmp_path / "identity.key")


def test_nothing_half_written_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        load_identity(tmp_path / "identity.key")
    assert list(tmp_path.iterdir()) == []
