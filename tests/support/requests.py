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
OF_A_TPM = bytes.fromhex(
    "3081ce307402010030123110300e06035504030c076d657465722d313059301306072a8648ce3d020106082a8648ce3d03010703"
    "42000404931ee985337b5091cff98f5c3b4a09b601cea66eabea4b72a2591698012d413355a884aa4416f441f07d18363f75a467"
    "8da7fa24d32a53194605f7b0b569c8a000300c06082a8648ce3d0403020500034800304502202f24f5ff47863f611b856a7f1e14"
    "2ec590578f4e23b369c1d674b530a4898188022100a72758f086c9eb73d2ccd6df74ad8a81cbba20e2749715c49369f78fb8e181"
    "b7"
)
"""For meter-1, by openssl req with tpm2-openssl 1.3.0: its algorithm is ecdsa-with-SHA256, NULL."""


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
