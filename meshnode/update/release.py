"""Releases as documents: who signed one, whether it is for us, and whether it is newer than any we have seen. Pure.

A document is JSON, `{"signed": TEXT, "signatures": [{"key": K, "signature": S}]}`. TEXT is a JSON document itself, and its
UTF-8 bytes are what is signed, so nothing depends on how JSON is written. Keys and signatures are base64, as in minisign.
Threshold, expiry and protection against rollback are TUF's: https://theupdateframework.github.io/specification/latest/
"""

import base64
import binascii
import datetime
import re
from collections.abc import Collection

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from meshnode.crypto.signing import signed_bytes
from meshnode.errors import ReleaseRefused, UpdateBlocked

__all__ = [
    "ANY_PLATFORM",
    "FORMAT",
    "MAX_ARTIFACT_BYTES",
    "MAX_DOCUMENT_BYTES",
    "PRODUCT",
    "Artifact",
    "Release",
    "Seen",
    "Verified",
    "check_expiry",
    "check_python",
    "check_rollback",
    "choose_artifact",
    "decode_key",
    "draft_release",
    "verify_release",
]

FORMAT = 1
PRODUCT = "meshnode"
ANY_PLATFORM = "any"
MAX_DOCUMENT_BYTES = 256 << 10
MAX_ARTIFACT_BYTES = 256 << 20

_DOMAIN = "release-1"
_KEY_BYTES = 32
_MAX_SIGNATURES = 64
_BLAKE3 = re.compile(r"[0-9a-f]{64}")
_PLATFORM = re.compile(r"[a-z0-9_]{1,64}")


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wheel: for whom, where, and exactly which bytes."""

    platform: str  # "any", or a tag such as linux_x86_64
    url: str  # absolute, or relative to the document's own
    bytes: int
    blake3: str  # hex


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed part of a document."""

    format: int
    product: str
    channel: str
    version: str  # PEP 440
    sequence: int  # grows with every document of a channel
    expires: datetime.datetime  # with its offset from UTC
    requires_python: str  # PEP 440 specifiers
    artifacts: tuple[Artifact, ...]


class Seen(msgspec.Struct, frozen=True):
    """The highest release of a channel and publisher that was ever verified here; nothing below it is taken any more."""

    sequence: int = 0
    version: str = "0"
    digest: str = ""  # BLAKE3 of the signed text


class Verified(msgspec.Struct, frozen=True):
    """A release that enough of our keys have signed, and what identifies it."""

    release: Release
    digest: str

    def seen(self) -> Seen:
        """Return what to remember of it."""
        return Seen(self.release.sequence, self.release.version, self.digest)


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    signature: str


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signed: str
    signatures: tuple[_Signature, ...]


class _Format(msgspec.Struct, frozen=True):
    format: int


def decode_key(text: str) -> bytes:
    """Return the 32 bytes of a public key in base64. Raises ValueError."""
    raw = _decode(text)
    if raw is None or len(raw) != _KEY_BYTES:
        raise ValueError(f"{text[:64]!r} is not the base64 of an Ed25519 public key of {_KEY_BYTES} bytes")
    return raw


def verify_release(
    document: bytes, *, keys: Collection[bytes], threshold: int, channel: str, now: datetime.datetime
) -> Verified:
    """Return the release in a document that at least `threshold` different ones of `keys` have signed.

    Nothing of the signed part is looked at before that. Raises ReleaseRefused, which says what is wrong.
    """
    envelope = _decode_document(document)
    signed = envelope.signed.encode()
    _check_signatures(envelope, signed, keys, threshold)
    release = _decode_release(signed)
    _check_release(release, channel, now)
    return Verified(release, blake3(signed).hexdigest())


def check_expiry(release: Release, now: datetime.datetime) -> None:
    """Raise ReleaseRefused for a release that has expired."""
    if release.expires <= now:
        raise ReleaseRefused(
            f"the release expired at {release.expires:%Y-%m-%d %H:%M} UTC: the publisher has stopped, somebody holds "
            "newer ones back, or this machine's clock is wrong"
        )


def check_rollback(verified: Verified, seen: Seen) -> None:
    """See to it that a release is none that an attacker, or a mirror that lags, has dug out. Raises ReleaseRefused."""
    release = verified.release
    if release.sequence < seen.sequence:
        raise ReleaseRefused(
            f"a downgrade: release {release.version} has sequence {release.sequence}, and {seen.version} with sequence "
            f"{seen.sequence} has been seen here before"
        )
    if release.sequence == seen.sequence and verified.digest != seen.digest:
        raise ReleaseRefused(f"two different releases have sequence {release.sequence}; the publisher must fix it")
    if Version(release.version) < Version(seen.version):
        raise ReleaseRefused(
            f"a downgrade: version {release.version} comes after {seen.version}; what was released is taken back by "
            "releasing a higher version"
        )


def check_python(release: Release, python: str) -> None:
    """See to it that this Python runs the release. Raises UpdateBlocked."""
    if not SpecifierSet(release.requires_python).contains(python, prereleases=True):
        raise UpdateBlocked(
            f"meshnode {release.version} needs Python {release.requires_python}, and this is {python}; install it by "
            "hand in an environment of such a Python"
        )


def choose_artifact(release: Release, platform: str) -> Artifact:
    """Return the artifact for a platform, its own before the one for all. Raises UpdateBlocked when there is none."""
    for wanted in (platform, ANY_PLATFORM):
        for artifact in release.artifacts:
            if artifact.platform == wanted:
                return artifact
    there = ", ".join(artifact.platform for artifact in release.artifacts)
    raise UpdateBlocked(f"meshnode {release.version} was not released for {platform}; it is there for {there}")


def draft_release(release: Release) -> bytes:
    """Return the document of a release that nobody has signed yet. Raises ReleaseRefused when nobody would take it."""
    text = msgspec.json.encode(release).decode()
    _check_release(_decode_release(text.encode()), release.channel, datetime.datetime.now(datetime.UTC))
    return _encode_document(_Document(text, ()))


def add_signature(document: bytes, private_key: Ed25519PrivateKey) -> tuple[bytes, Release]:
    """Return the document with a signature of one more key, and what it was that was signed. Raises ReleaseRefused."""
    envelope = _decode_document(document)
    release = _decode_release(envelope.signed.encode())
    _check_release(release, release.channel, datetime.datetime.now(datetime.UTC))
    key = _encode(private_key.public_key().public_bytes_raw())
    signature = _encode(private_key.sign(signed_bytes(_DOMAIN, envelope.signed.encode())))
    others = tuple(each for each in envelope.signatures if each.key != key)
    return _encode_document(_Document(envelope.signed, (*others, _Signature(key, signature)))), release


def _check_signatures(envelope: _Document, signed: bytes, keys: Collection[bytes], threshold: int) -> None:
    if len(envelope.signatures) > _MAX_SIGNATURES:
        raise ReleaseRefused(f"the release has more than {_MAX_SIGNATURES} signatures")
    payload, good = signed_bytes(_DOMAIN, signed), set[bytes]()
    for each in envelope.signatures:
        key, signature = _decode(each.key), _decode(each.signature)
        if key is None or signature is None or key not in keys:
            continue  # of a key that is new, or that we have dropped: it counts for nothing
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, payload)
        except (InvalidSignature, ValueError) as error:
            raise ReleaseRefused(
                f"the signature of key {each.key[:64]} is not good: the release was changed after it was signed"
            ) from error
        good.add(key)
    if len(good) < threshold:
        raise ReleaseRefused(
            f"the release is signed by {len(good)} of the keys in updates.keys, and {threshold} different ones are needed"
        )


def _decode_document(document: bytes) -> _Document:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ReleaseRefused(f"the release document is longer than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return msgspec.json.decode(document, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReleaseRefused(f"this is not a release document: {error}") from error


def _encode_document(envelope: _Document) -> bytes:
    return msgspec.json.format(msgspec.json.encode(envelope)) + b"\n"


def _decode_release(signed: bytes) -> Release:
    try:
        form = msgspec.json.decode(signed, type=_Format).format
        if form != FORMAT:
            raise ReleaseRefused(
                f"the release is written in format {form}, and this version reads format {FORMAT}; install the newest "
                "meshnode by hand"
            )
        return msgspec.json.decode(signed, type=Release)
    except msgspec.MsgspecError as error:
        raise ReleaseRefused(f"the release is not well-formed, though it is signed: {error}") from error


def _check_release(release: Release, channel: str, now: datetime.datetime) -> None:
    if release.product != PRODUCT:
        raise ReleaseRefused(f"this is a release of {release.product!r}, not of {PRODUCT}")
    if release.channel != channel:
        raise ReleaseRefused(f"this is a release of channel {release.channel!r}, and updates.channel is {channel!r}")
    if release.expires.tzinfo is None:
        raise ReleaseRefused("the release does not say in which time zone it expires")
    check_expiry(release, now)
    if release.sequence < 1:
        raise ReleaseRefused(f"the release has sequence {release.sequence}; the first is 1")
    try:
        if str(Version(release.version)) != release.version:  # it is the name of a folder, too
            raise ReleaseRefused(f"{release.version!r} is to be written {Version(release.version)}")
        SpecifierSet(release.requires_python)
    except (InvalidVersion, InvalidSpecifier) as error:
        raise ReleaseRefused(f"the release is not well-formed, though it is signed: {error}") from error
    if not release.artifacts:
        raise ReleaseRefused(f"release {release.version} has no artifacts")
    for artifact in release.artifacts:
        _check_artifact(artifact)


def _check_artifact(artifact: Artifact) -> None:
    if not _PLATFORM.fullmatch(artifact.platform):
        raise ReleaseRefused(f"{artifact.platform[:64]!r} is no platform; one is any, or a tag such as linux_x86_64")
    if not _BLAKE3.fullmatch(artifact.blake3):
        raise ReleaseRefused(f"{artifact.blake3[:80]!r} is no BLAKE3 in hex")
    if not 0 < artifact.bytes <= MAX_ARTIFACT_BYTES:
        raise ReleaseRefused(f"an artifact of {artifact.bytes} bytes is not taken; the limit is {MAX_ARTIFACT_BYTES}")


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
