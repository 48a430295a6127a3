"""Certificate signing requests and issuance requests, in one line, for tests of the CA core and the service."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from provisioning.pki.keys import PrivateKey, generate_key

NOON = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)


def csr_der(
    key: PrivateKey | None = None,
    names: Sequence[str] = ("meter-17",),
    extensions: Sequence[x509.ExtensionType] = (),
    hash_algorithm: hashes.HashAlgorithm | None = None,
    attributes: Sequence[x509.NameAttribute[str | bytes]] = (),
) -> bytes:
    """Return a request for the Common Names *names*, with *attributes* before them, signed by *key*."""
    key = key or generate_key()
    subject = x509.Name([*attributes, *(x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return builder.sign(key, None).public_bytes(Encoding.DER)
    signed = builder.sign(key, hash_algorithm or hashes.SHA256())  # type: ignore[arg-type]
    return signed.public_bytes(Encoding.DER)
