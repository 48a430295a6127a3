"""Certificates that are good since the year 0: OpenSSL knows that year, and Python has no `datetime` for it."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.ca.der import BIT_STRING, SEQUENCE, children, element
from provisioning.pki.keys import PrivateKey

YEAR_0 = "00000101000000Z"
_VALIDITY = 4
_GENERALIZED_TIME = b"\x18"


def since_year_0(certificate: x509.Certificate, key: PrivateKey) -> x509.Certificate:
    """Return *certificate* with that begin, signed again by *key*, an EC key."""
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    tbs, algorithm, _ = children(certificate.public_bytes(Encoding.DER))
    fields = [*children(tbs)]
    _, end = children(fields[_VALIDITY])
    fields[_VALIDITY] = element(SEQUENCE, element(_GENERALIZED_TIME, YEAR_0.encode()) + end)
    tbs = element(SEQUENCE, b"".join(fields))
    signature = element(BIT_STRING, b"\0" + key.sign(tbs, ec.ECDSA(hashes.SHA256())))
    return x509.load_der_x509_certificate(element(SEQUENCE, tbs + algorithm + signature))
