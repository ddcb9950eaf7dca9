"""The publisher's side: keys, a release made from a wheel, and signatures that are added one by one, each where its key is."""

import base64
import datetime
import os
import zipfile
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from packaging.metadata import parse_email
from packaging.version import InvalidVersion, Version

from meshnode.errors import UpdateError
from meshnode.update.release import ANY_PLATFORM, FORMAT, PRODUCT, Artifact, Release, add_signature, draft_release

__all__ = ["make_key", "make_release", "sign"]


def make_key(path: Path) -> str:
    """Write a new private key, base64 of its 32 bytes, readable by its owner alone, and return the public key for settings.

    Raises UpdateError; a file that is there is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(base64.b64encode(key.private_bytes_raw()) + b"\n")
    except FileExistsError as error:
        raise UpdateError(f"{path} is there already; a key is never overwritten") from error
    except OSError as error:
        raise UpdateError(f"cannot write {path}: {error.strerror}") from error
    return _public(key)


def make_release(
    wheel: Path, *, sequence: int, days: int, channel: str, url: str, platform: str = ANY_PLATFORM
) -> bytes:
    """Return the document, not signed yet, of a release that consists of a wheel of meshnode; it expires in `days`.

    Raises UpdateError and ReleaseRefused.
    """
    try:
        data = wheel.read_bytes()
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
            metadata, _ = parse_email(archive.read(name))
        if metadata.get("name") != PRODUCT:
            raise UpdateError(f"{wheel} is a wheel of {metadata.get('name')}, not of {PRODUCT}")
        version = str(Version(metadata["version"]))
    except OSError as error:
        raise UpdateError(f"cannot read {wheel}: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, KeyError, InvalidVersion) as error:
        raise UpdateError(f"{wheel} is no wheel: {error}") from error
    expires = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=days)
    artifact = Artifact(platform, url, len(data), blake3(data).hexdigest())
    python = str(metadata.get("requires_python", ""))
    return draft_release(Release(FORMAT, PRODUCT, channel, version, sequence, expires, python, (artifact,)))


def sign(document: Path, key_file: Path) -> tuple[str, Release]:
    """Add the signature of a key to a document, and return the public key and what was signed. Raises UpdateError leafs."""
    try:
        key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(key_file.read_bytes(), validate=False))
    except (OSError, ValueError) as error:
        raise UpdateError(f"{key_file} is no key of `meshnode update key`: {error}") from error
    try:
        signed, release = add_signature(document.read_bytes(), key)
        document.write_bytes(signed)
    except OSError as error:
        raise UpdateError(f"{document}: {error.strerror}") from error
    return _public(key), release


def _public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()
