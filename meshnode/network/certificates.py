"""The certificate of this run of the node. Nobody vouches for it: who dials has its hash from the control link."""

import datetime
import hashlib
import ssl

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshnode.crypto.tls import listener_context

__all__ = ["Credentials", "make_credentials"]

# No clock is asked: machines whose clocks are wrong must reach each other too.
_FROM, _UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(2100, 1, 1)


@attrs.frozen
class Credentials:
    """What a listener presents, and the SHA-256 by which it is known."""

    context: ssl.SSLContext
    fingerprint: bytes
    pem: bytes = attrs.field(repr=False)  # the key and the certificate


def make_credentials() -> Credentials:
    """Make a key and a certificate for it (about a millisecond); neither outlives the process."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshnode")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _FROM, _UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = key.private_bytes(*plain) + certificate.public_bytes(serialization.Encoding.PEM)
    encoded = certificate.public_bytes(serialization.Encoding.DER)
    return Credentials(listener_context(pem), hashlib.sha256(encoded).digest(), pem)
