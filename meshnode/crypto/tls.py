"""TLS between machines that know each other's certificate by its hash, which a control link has told them."""

import hashlib
import hmac
import ssl
import tempfile
from pathlib import Path

__all__ = ["dialler_context", "is_presented", "listener_context"]


def listener_context(pem: bytes) -> ssl.SSLContext:
    """Return the context of who listens; `pem` is its key and certificate."""
    context = _tls13(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # nobody resumes a session
    with tempfile.TemporaryDirectory() as folder:  # ssl reads keys from files only; this one is ours alone
        path = Path(folder) / "key-and-certificate.pem"
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context


def dialler_context() -> ssl.SSLContext:
    """Return the context of who dials, which takes any certificate: the caller must compare its hash before it says anything."""
    context = _tls13(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_presented(certificate: bytes | None, fingerprint: bytes) -> bool:
    """Say whether the certificate that the other side presents (DER) is the one of this SHA-256."""
    return hmac.compare_digest(hashlib.sha256(certificate or b"").digest(), fingerprint)


def _tls13(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
