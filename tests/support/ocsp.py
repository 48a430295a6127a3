"""OCSP requests, and answers read by a third-party library: openssl."""

from __future__ import annotations

import functools

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provisioning.ca.der import SEQUENCE, children, element

SHA1 = hashes.SHA1()  # noqa: S303 - the CertID of old clients
SHA256 = hashes.SHA256()


def request_der(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    algorithm: hashes.HashAlgorithm = SHA256,
    *,
    nonce: bytes | None = None,
) -> bytes:
    """Return a request for one certificate's serial number, at *issuer*."""
    name_hash = hashes.Hash(algorithm)
    name_hash.update(issuer.subject.public_bytes())
    key_hash = ocsp.OCSPRequestBuilder().add_certificate(issuer, issuer, algorithm).build().issuer_key_hash
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        name_hash.finalize(), key_hash, certificate.serial_number, algorithm
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def certid_in(question: bytes) -> bytes:
    """Return the CertID of a request: the first of the first, four deep."""
    return functools.reduce(lambda outer, _: next(children(outer)), range(4), question)


def nested(deep: int, content: bytes) -> bytes:
    """Return *content* in so many SEQUENCEs."""
    return functools.reduce(lambda inner, _: element(SEQUENCE, inner), range(deep), content)
