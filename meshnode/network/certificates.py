"""The certificate of this run of the node. Nobody vouches for it: who dials has its hash from the control link."""

import datetime
import hashlib
import ssl
import tempfile
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Credentials", "dialler_context", "make_credentials"]

# No clock is asked: machines whose clocks are wrong must reach each other too.
_FROM, _UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(2100, 1, 1)


@attrs.frozen
class Credentials:
    """What a listener presents, and the SHA-256 by which it is known."""

    context: ssl.SSLContext
    fingerprint: bytes


def make_credentials() -> Credentials:
    """Make a key and a certificate for it (about a millisecond); neither outlives the process."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshnode")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _FROM, _UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    context = _tls13(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # nobody resumes a session
    with tempfile.TemporaryDirectory() as folder:  # ssl reads keys from files only; this one is ours alone
        path = Path(folder) / "key-and-certificate.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context.load_cert_chain(path)
    encoded = certificate.public_bytes(serialization.Encoding.DER)
    return Credentials(context, hashlib.sha256(encoded).digest())


def dialler_context() -> ssl.SSLContext:
    """Return the context of who dials, which takes any certificate: the caller must compare its hash before it says anything."""
    context = _tls13(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _tls13(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
